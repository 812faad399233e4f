"""Recipes: calls of real pipelines that are kept, one model family a file, variants as rows.

Imports `aot.request`, and diffusers inside functions.
"""

from aot.choice import choice
from aot.errors import Unsupported
from aot.recipes.latte import LATTE
from aot.recipes.pixart import PIXART_ALPHA
from aot.recipes.rows import FAMILIES
from aot.recipes.sd3 import SD3
from aot.recipes.sd21 import SD21
from aot.recipes.sdxl import SDXL, SDXL_IP_ADAPTER
from aot.request.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PIXART_ALPHA, LATTE, SD21, SDXL, SDXL_IP_ADAPTER, SD3)}


def find(name: str) -> Recipe:
    """Raises BadInput naming the nearest recipe, Unsupported for one that is data alone."""
    if choice(name, known=[*RECIPES, *FAMILIES], field="recipe") in FAMILIES:
        raise Unsupported(f"{name} is made without weights and prompts: it can be built, and not run here.", remedy="`aot build` it.")
    return RECIPES[name]
