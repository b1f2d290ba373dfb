"""The words the expert reads and speaks.

They are the game's words, written down a second time on purpose: the expert sees only the text of a request and imports
nothing of the game. A test holds both lists together.
"""

from __future__ import annotations

KINDS = (
    *("void", "water", "grass", "stone", "path", "sand", "tree", "lava", "coal", "iron", "diamond", "table"),
    *("furnace", "player", "cow", "zombie", "skeleton", "arrow", "sapling", "ripe_plant"),
)
"""What a cell of the view can show, at the index that is its code."""
VOID, WATER, GRASS, STONE, PATH, SAND, TREE, LAVA, COAL, IRON, DIAMOND, TABLE, FURNACE = range(13)
PLAYER, COW, ZOMBIE, SKELETON, ARROW, SAPLING, RIPE_PLANT = range(13, 20)
UNKNOWN = 20
"""The code of a cell not seen yet."""
KIND_CODES = {name: code for code, name in enumerate(KINDS)}

WALKABLE = frozenset((GRASS, PATH, SAND))
PLANTS = frozenset((SAPLING, RIPE_PLANT))
HOSTILE = frozenset((ZOMBIE, SKELETON, ARROW))

DIRECTIONS = ("left", "right", "up", "down")
VITALS = ("health", "food", "drink", "energy")
TOOLS = ("wood_pickaxe", "stone_pickaxe", "iron_pickaxe", "wood_sword", "stone_sword", "iron_sword")
ITEMS = (*VITALS, "sapling", "wood", "stone", "coal", "iron", "diamond", *TOOLS)

ACTIONS = (
    *("noop", "move_left", "move_right", "move_up", "move_down", "do", "sleep"),
    *("place_stone", "place_table", "place_furnace", "place_plant"),
    *("make_wood_pickaxe", "make_stone_pickaxe", "make_iron_pickaxe"),
    *("make_wood_sword", "make_stone_sword", "make_iron_sword"),
)
MOVES = tuple(f"move_{direction}" for direction in DIRECTIONS)
"""The moves, at the index of their direction."""

ACHIEVEMENTS = (
    *("collect_coal", "collect_diamond", "collect_drink", "collect_iron", "collect_sapling", "collect_stone"),
    *("collect_wood", "defeat_skeleton", "defeat_zombie", "eat_cow", "eat_plant", "make_iron_pickaxe"),
    *("make_iron_sword", "make_stone_pickaxe", "make_stone_sword", "make_wood_pickaxe", "make_wood_sword"),
    *("place_furnace", "place_plant", "place_stone", "place_table", "wake_up"),
)

THOUGHTS = (
    # survival
    *("asleep", "fight_adjacent_zombie", "fight_adjacent_skeleton", "rest_in_shelter", "make_shelter", "retreat"),
    *("block_zombie_with_stone", "block_arrows_with_stone", "go_to_sapling_for_the_night"),
    # needs
    *("drink", "look_for_water", "eat", "look_for_food", "top_up_water", "hit_cow", "eat_cow", "eat_ripe_plant"),
    # tools
    *("craft_wood_pickaxe", "craft_stone_pickaxe", "craft_iron_pickaxe"),
    *("craft_wood_sword", "craft_stone_sword", "craft_iron_sword"),
    # material
    *("collect_wood", "collect_stone", "collect_coal", "collect_iron", "collect_diamond"),
    *("mine_coal", "mine_iron", "mine_diamond", "collect_stone_for_furnace", "make_room"),
    # places
    *("place_stone", "place_table", "place_furnace", "go_to_table", "return_to_table", "return_to_base"),
    # plants
    *("search_grass_for_sapling", "go_to_grass", "place_sapling", "plant_sapling", "protect_sapling"),
    *("return_to_sapling", "go_to_sapling", "wait_for_plant", "eat_plant"),
    # fights and sleep
    *("hunt_zombie", "hunt_skeleton", "shelter_for_nap", "nap"),
    # nothing better to do
    *("explore_any", "explore_green", "explore_rock", "nothing_to_do", "idle"),
)
"""Every reason the expert can give."""
