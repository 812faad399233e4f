"""Rows: the pipelines of today that are kept, by name."""

from aot.recipes.images import FLUX_1, FLUX_2, QWEN_IMAGE, SD_3_5, Z_IMAGE
from aot.recipes.row import Family
from aot.recipes.videos import LTX, WAN_2_2

FAMILIES: dict[str, Family] = {family.name: family for family in (FLUX_1, FLUX_2, QWEN_IMAGE, Z_IMAGE, WAN_2_2, LTX, SD_3_5)}
