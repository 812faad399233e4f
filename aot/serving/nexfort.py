"""The API in nexfort's own shape: `compile`, `compile_pipe`, and `restore` to undo them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from aot.artifact.guard import Guard
from aot.artifact.ledger import Ledger, close_ledger, open_ledger
from aot.cache_store.cached import CachedStore
from aot.cache_store.errors import CodedError
from aot.cache_store.local import LocalStore
from aot.cache_store.location import open_cached
from aot.cache_store.root import default_root
from aot.cache_store.trust import trust_keys
from aot.choice import choice
from aot.compiler.inductor import jit
from aot.environment import GRAPH_CACHE
from aot.errors import BadInput, Conflict, Miss
from aot.machine.settings import claim
from aot.machine.target import Allow, Target
from aot.model.capture import component, modules_of
from aot.model.fusion import fuse_qkv
from aot.model.ip_adapter import live_scale
from aot.model.memory_format import to_channels_last
from aot.request.options import Options
from aot.serving.dispatch import OnMiss
from aot.serving.held import give_back, on_restore, share
from aot.serving.jit import rescued
from aot.serving.learn import Learner
from aot.serving.load import Wish, attach, fall_back
from aot.serving.standin import Compiled, take_away
from aot.shipping.packages import with_packages

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P")
T = TypeVar("T")

# What compile_pipe compiles, where a pipeline has it. All else that it is made of is served from an artifact that has it, and
# else left alone: an encoder runs once a prompt, and to compile it would cost more than it saves
PIPELINE_COMPONENTS = ("transformer", "transformer_2", "unet", "controlnet", "prior", "decoder", "vae.decoder")

OptionsLike: TypeAlias = Options | Mapping[str, Any] | str | None


def compile(
    module: M,
    *,
    options: OptionsLike = None,
    on_miss: str = "compile",
    allow: Collection[str] = (),
    strict: bool = False,
    backend: str = "nexfort",
) -> M:
    """Compile `module` in place and return it: from an artifact where `NEXFORT_GRAPH_CACHE` allows one, else with torch.compile.

    `options` is nexfort's dict or its JSON string: mode, memory_format, dynamic, options. `NEXFORT_GRAPH_CACHE` unset or `0`
    reads no artifact; `1` reads the local store; any other value is a store's location. `on_miss` says what serves a call
    that no graph serves: `compile`, `eager` or `error`. `allow` names differences from the machine an artifact was built for
    that are taken although they degrade: `other-sku` of the same architecture, `other-torch` (only after a process of its
    own reproduced the artifact's golden outputs), `other-source` where functions that were traced have changed (only after
    the model itself reproduced the golden outputs, which costs a call of each graph). With `strict` what no artifact serves is an error
    here and now, before the first request. Loading an artifact runs its author's code.

    Raises BadInput for options that cannot be understood; Conflict when something compiled before in this process needs the
    opposite of a process setting (TF32, cuDNN's benchmark) that this mode needs. Under `on_miss="error"` Miss, here or at a call; and
    here, under `strict` too, what kept an artifact from being loaded: Miss, Untrusted, Corrupt, Unreachable, Crashed, LoadFailed.
    Nothing else is raised for a store or artifact that is absent, refused or damaged: it is logged once and counted in `aot.stats()`.
    """
    choice(backend, known=("nexfort",), field="backend")
    parsed = Options.parse(options)
    with _from_the_start([module]):
        _compile({"module": module}, parsed, os.environ.get(GRAPH_CACHE, "0"), {}, _policy(on_miss, allow, strict=strict))
    return module


def compile_pipe(
    pipe: P,
    *,
    options: OptionsLike = None,
    fuse_qkv_projections: bool = False,
    ignores: tuple[str, ...] = (),
    on_miss: str = "compile",
    allow: Collection[str] = (),
    strict: bool = False,
    learn: str | Path | None = None,
    backend: str = "nexfort",
) -> P:
    """Compile the denoisers and the VAE decoder of a diffusers pipeline in place and return the pipeline. See `compile`.

    All else that it is made of, encoders for one, is served too where an artifact has it, and is otherwise left as it is. The scale of an
    IP-Adapter stays live: `set_ip_adapter_scale` takes floats, and float32 tensors that may then be changed in place.

    `fuse_qkv_projections` fuses the attention projections of the denoiser first. `ignores` names components to leave alone. `learn` is a
    file: the Record of the calls that no graph served, each written down as it is first met, from which `aot build` builds; BadInput
    where that cannot be.
    """
    choice(backend, known=("nexfort",), field="backend")
    location = os.environ.get(GRAPH_CACHE, "0")
    policy = _policy(on_miss, allow, strict=strict)
    return _compile_pipe(pipe, options, location, fuse=fuse_qkv_projections, ignores=ignores, policy=policy, learn=learn)


def enable(
    pipe: P,
    store: str = "1",
    *,
    options: OptionsLike = None,
    fuse_qkv_projections: bool = False,
    ignores: tuple[str, ...] = (),
    on_miss: str = "compile",
    allow: Collection[str] = (),
    strict: bool = False,
    learn: str | Path | None = None,
    trust: Collection[str] = (),
) -> P:
    """Serve a diffusers pipeline from the artifacts of `store` and return it: pull, trust and load in one line.

    `store` is a location (`hf://ORG/REPO`, `s3://…`, a path), read through into the local one; by default that itself. What is signed
    by a key that the user listed, or pinned in aot.lock, is loaded. `trust` are key lines to list first, for this store alone; get
    them from their owner. All else, what is raised too, is as in `compile_pipe`, whatever `NEXFORT_GRAPH_CACHE` says; Malformed for
    a key line that is none.
    """
    if trust:
        found, local = opened(store)
        trust_keys(local.root, trust, stores=[found.location])
    policy = _policy(on_miss, allow, strict=strict)
    return _compile_pipe(pipe, options, store, fuse=fuse_qkv_projections, ignores=ignores, policy=policy, learn=learn)


def _compile_pipe(
    pipe: P, options: OptionsLike, location: str, *, fuse: bool, ignores: tuple[str, ...], policy: _Policy, learn: str | Path | None
) -> P:
    modules = components(pipe, ignores)
    if not modules:
        raise BadInput(
            f"{type(pipe).__name__} has none of {', '.join(PIPELINE_COMPONENTS)} to compile.", remedy="use compile() on a module."
        )
    parsed = Options.parse(options)
    # under freezing the weights of every module looked at are read in full: not those of encoders that nobody froze
    optional = {} if parsed.mode.freezing else components(pipe, (*ignores, *modules), tuple(parts(pipe)))
    with _from_the_start([*modules.values(), *optional.values()]):
        for module in modules.values():
            if fuse and (undo := fuse_qkv(module)):
                on_restore(module, undo)
        learner = Learner(learn, pipe, modules, fused=fuse) if learn else None
        ledger = _compile(modules, parsed, location, optional, policy)
        if learner:
            for path, module in modules.items():
                learner.watch(path, module, ledger)
    return pipe


@dataclass(frozen=True, slots=True)
class _Policy:
    """What serves a call that no graph serves, what is taken although it degrades, and whether nothing to load is an error."""

    on_miss: OnMiss
    allow: frozenset[Allow]
    strict: bool


def _policy(on_miss: str, allow: Collection[str], *, strict: bool) -> _Policy:
    """Raises BadInput for words that are none."""
    allowed = frozenset(Allow(choice(word, known=list(Allow), field="allow")) for word in allow)
    return _Policy(OnMiss(choice(on_miss, known=list(OnMiss), field="on_miss")), allowed, strict)


@contextmanager
def _from_the_start(modules: list[nn.Module]) -> Iterator[None]:
    """Undo what was compiled before. An error or interrupt within leaves them so: not fused, laid out otherwise or half served."""
    for module in modules:
        restore(module)
    try:
        yield
    except BaseException:  # an interrupt too
        for module in modules:
            restore(module)
        raise


def restore(compiled: T) -> T:
    """Undo `compile` or `compile_pipe` in place: forwards, fused projections, memory format. Fine where nothing was done."""
    found: Mapping[str, nn.Module]
    found = {"": compiled} if isinstance(compiled, nn.Module) else components(compiled, (), (*PIPELINE_COMPONENTS, *parts(compiled)))
    for module in found.values():
        take_away(module)
        give_back(module)
    return compiled


def components(pipe: Any, ignores: tuple[str, ...], paths: tuple[str, ...] = PIPELINE_COMPONENTS) -> dict[str, nn.Module]:
    """What `compile_pipe` compiles of `pipe`, by path."""
    found = {path: _at(pipe, path) for path in paths if path not in ignores}
    return {path: module for path, module in found.items() if isinstance(module, nn.Module)}


def _at(pipe: Any, path: str) -> Any:
    """What is at a dotted path; None where nothing is."""
    with suppress(AttributeError):
        return component(pipe, path)
    return None


def parts(pipe: Any) -> Iterator[str]:
    """The paths of all that a pipeline may call as a module: its components, and of autoencoders, whose methods it calls, the parts."""
    for name, part in modules_of(pipe).items():
        coder = hasattr(part, "decode") or hasattr(part, "encode")
        yield from (f"{name}.{inner}" for inner, child in part.named_children() if child._modules) if coder else (name,)


def _compile(modules: dict[str, nn.Module], options: Options, location: str, optional: Mapping[str, nn.Module], policy: _Policy) -> Ledger:
    """Returns the account that is kept of it."""
    ledger = open_ledger(tuple(modules))
    for module in modules.values():
        if undo := live_scale(module):
            on_restore(module, undo)
        if options.memory_format == "channels_last":
            on_restore(module, to_channels_last(module))
    share(modules.values(), partial(close_ledger, ledger))
    if location in ("", "0"):
        if policy.strict:
            raise Miss(f"{GRAPH_CACHE} is not set, and no artifact is read.", remedy=f"set {GRAPH_CACHE} to 1, or to a store's location.")
        ledger.unserved |= dict.fromkeys(modules, f"{GRAPH_CACHE} is not set")
        release = claim(f"the {options.mode.title} compilation of {', '.join(modules)}", options.process)
        for module in modules.values():
            Compiled(module, partial(jit, options=options)).put()
    else:
        wish = Wish(options, policy.on_miss, frozenset(optional), policy.allow, policy.strict)
        release = _load(modules, {**modules, **optional}, location, wish=wish, ledger=ledger)
    share(modules.values(), release)
    return ledger


def opened(location: str) -> tuple[LocalStore | CachedStore, LocalStore]:
    """The store at a location, `1` being the local one, and the local one that it is read through."""
    root = default_root(os.environ)
    store = open_cached(str(root) if location == "1" else location, root)
    if isinstance(store, CachedStore):
        store.remote = with_packages(store.remote)
    return store, store if isinstance(store, LocalStore) else store.local


def _load(modules: dict[str, nn.Module], wanted: dict[str, nn.Module], location: str, *, wish: Wish, ledger: Ledger) -> Callable[[], None]:
    options = wish.options
    device = next((weight.device for module in modules.values() for weight in module.parameters()), torch.device("cpu"))
    try:
        store, local = opened(location)
        guard = Guard.of(local.root, os.environ)
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # graphs are opened on the current one
            return attach(wanted, store, wish=wish, here=Target.detect(device.type), guard=guard, ledger=ledger)
    except Conflict:
        raise
    except CodedError as error:  # a store, device or torch that cannot be used costs a compile, not the service
        if wish.on_miss is OnMiss.ERROR or wish.strict:
            raise
        why = f"{error.code} {error.message.rstrip('.')}"

        def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
            return rescued(lambda: jit(forward, options), forward)

        for path, module in modules.items():
            fall_back(module, path, on_miss=wish.on_miss, jit=compiled, why=why, ledger=ledger)
        return claim(f"the {options.mode.title} compilation of {', '.join(modules)}", options.process)
