"""Recipes: calls of real pipelines that are kept, one model family a file, variants as rows.

Imports `aot.request`, and diffusers inside functions.
"""

from aot.choice import choice
from aot.recipes.latte import LATTE
from aot.recipes.pixart import PIXART_ALPHA
from aot.recipes.sd3 import SD3
from aot.recipes.sd21 import SD21
from aot.recipes.sdxl import SDXL, SDXL_IP_ADAPTER
from aot.request.recipe import Recipe

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PIXART_ALPHA, LATTE, SD21, SDXL, SDXL_IP_ADAPTER, SD3)}


def find(name: str) -> Recipe:
    """Raises BadInput naming the nearest recipe."""
    return RECIPES[choice(name, known=RECIPES, field="recipe")]
