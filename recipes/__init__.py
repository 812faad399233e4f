"""Recipes: one model family a file, variants are rows. diffusers is imported inside functions."""

from aot.choice import choice
from aot.recipe import Recipe
from recipes.pixart import PIXART_ALPHA

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (PIXART_ALPHA,)}


def find(name: str) -> Recipe:
    """Raises BadInput naming the nearest recipe."""
    return RECIPES[choice(name, known=RECIPES, field="recipe")]
