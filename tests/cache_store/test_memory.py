import pytest

from aot.cache_store.memory import MemoryStore
from tests.cache_store.store_contract import WritingContract


class TestMemoryStore(WritingContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()
