"""Graded English sentence pairs that the package makes itself, so that it works with no data.

Small and artificial: good for trying a command and for tests, and no measure of quality. A
sentence tells one event: who did what to how many of which thing, where, when, how, and under
what circumstances. The second sentence of a pair tells it changed, and the change is the grade:

- 5: the same event in other words and another order.
- 4: one detail (where, when, how, circumstances) is left out.
- 3: one detail is another: where, when, how many, or to which thing.
- 2: the same actor did something else, or did not do it.
- 1: only the place is the same.
- 0: another actor did another thing elsewhere; when, how many and circumstances may be shared.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np

from ..errors import TwinlineError
from .pairs import Pairs

T = TypeVar("T")

SPLITS = {"train": 400, "validation": 150, "test": 150}

_SEED = 2017

# One paragraph a scene. Wordings of one thing stand between bars. An event is its verbs, a colon,
# and the things it can be done to. Verbs are regular, and so are plurals: _past and _plural.
_SCENES = """
place: at the harbour | down by the docks
place: on the open sea | far away from the coast
actor: fisherman | trawlerman
actor: sailor | seaman
event: repair | mend | fix: net | fishing net; engine | motor
event: unload | empty: crate | wooden box; barrel | cask
event: notice | observe: whale | giant sea mammal; lighthouse | beacon
event: scour | wash: boat | vessel; cabin | sleeping compartment

place: in the restaurant kitchen | behind the swing doors of the restaurant
place: at the beach café | in the coffee shop by the water
actor: chef | head cook
actor: waiter | server
event: prepare | cook: omelette | egg dish; pancake | flapjack
event: clean | rinse: plate | dish; glass | tumbler
event: order | request: oven | stove; tablecloth | table cover
event: serve | offer: dessert | sweet course; cocktail | mixed drink

place: in the classroom | inside the schoolroom
place: on the playground | out in the school yard
actor: teacher | schoolmaster
actor: pupil | school student
event: mark | correct: essay | written composition; exam | test paper
event: explain | clarify: riddle | brain-teaser; equation | formula
event: collect | gather: textbook | schoolbook; pencil | crayon
event: repair | mend: bench | long wooden seat; window | pane of glass

place: in the hospital ward | among the sickbeds of the clinic
place: in the ambulance | inside the emergency vehicle
actor: nurse | medical carer
actor: patient | sick person
event: inspect | examine: wound | injury; scan | medical image
event: request | ask for: blanket | warm cover; painkiller | pill against pain
event: replace | change: bandage | dressing; pillow | head cushion
event: record | note down: symptom | sign of illness; pulse | heart rate

place: on the farm | at the homestead
place: in the barn | inside the big wooden shed
actor: farmer | grower of crops
actor: vet | animal doctor
event: wash | clean: cow | dairy animal; pony | small horse
event: harvest | gather in: pumpkin | orange squash; cabbage | head of cabbage
event: repair | patch up: tractor | farm vehicle; fence | wooden barrier
event: chase | pursue: fox | red-tailed hunter; rat | rodent

place: in the office | at the company headquarters
place: in the meeting room | around the conference table
actor: manager | boss
actor: accountant | bookkeeper
event: approve | endorse: report | written summary; contract | binding agreement
event: postpone | delay: meeting | discussion; deadline | due date
event: order | purchase: laptop | notebook computer; printer | printing machine
event: delete | erase: message | e-mail; file | stored document

place: in the stadium | at the sports arena
place: on the training pitch | out on the practice field
actor: striker | attacking player
actor: goalkeeper | goalie
event: miss | waste: penalty | spot kick; chance | opportunity to score
event: kick | boot: ball | football; bottle | drinking flask
event: demand | call for: replay | rematch; break | pause
event: praise | compliment: teammate | fellow player; referee | match official

place: at the market | among the stalls
place: in the shopping centre | inside the mall
actor: shopkeeper | store owner
actor: customer | shopper
event: purchase | acquire: jacket | short coat; carpet | rug
event: snatch | swipe: purse | handbag; necklace | gold chain
event: display | exhibit: painting | framed picture; vase | flower jar
event: return | hand back: sofa | couch; bicycle | bike

place: in the laboratory | inside the research lab
place: at the university | on the campus
actor: scientist | researcher
actor: engineer | technician
event: identify | detect: virus | pathogen; crystal | mineral
event: publish | release: article | scholarly paper; dataset | collection of data
event: test | try out: robot | automatic machine; vaccine | protective jab
event: damage | ruin: microscope | magnifying device; sensor | measuring probe

place: in the concert hall | at the auditorium
place: in the recording studio | behind the soundproof glass of the studio
actor: violinist | fiddler
actor: singer | vocalist
event: perform | play: song | tune; symphony | orchestral work
event: polish | buff: trumpet | brass horn; piano | keyboard instrument
event: record | tape: album | full-length disc; interview | conversation
event: accept | receive: award | prize; bouquet | bunch of flowers

place: at the railway station | on the platform
place: in the dining car | in the carriage where meals are served
actor: passenger | traveller
actor: inspector | ticket collector
event: await | look out for: train | express; taxi | cab
event: check | examine: ticket | travel pass; passport | identity document
event: carry | haul: suitcase | travel bag; backpack | rucksack
event: repair | fix: signal | warning light; door | entrance

place: in the garden | out in the back yard
place: in the greenhouse | inside the glasshouse
actor: gardener | groundskeeper
actor: neighbour | person from next door
event: water | sprinkle: lawn | patch of grass; flower | blossom
event: prune | shorten: hedge | row of bushes; vine | climbing plant
event: unearth | uncover: coin | old penny; bone | piece of skeleton
event: admire | wonder at: butterfly | winged insect; bird | feathered creature

place: in the courtroom | before the court
place: in the prison | at the jail
actor: judge | magistrate
actor: lawyer | attorney
event: reject | dismiss: claim | allegation; appeal | request for review
event: describe | depict: suspect | alleged offender; gun | firearm
event: question | interrogate: detective | police investigator; guard | warden
event: study | look over: letter | written note; photograph | photo

place: at the building site | where the new tower is going up
place: on the roof | on top of the house
actor: carpenter | woodworker
actor: architect | building designer
event: install | mount: solar panel | photovoltaic module; chimney | smokestack
event: measure | gauge: wall | brick partition; beam | girder
event: demolish | wreck: shed | hut; staircase | flight of stairs
event: sketch | outline: bridge | river crossing; balcony | raised terrace
"""

_ADJECTIVES = """
old | elderly; young | youthful; tired | weary; cheerful | happy; famous | well-known
nervous | anxious; clever | bright; rich | wealthy
"""
_COUNTS = """
two | a couple of | a pair of; three | 3; four | 4; five | 5; six | half a dozen; seven | 7
twelve | a dozen; twenty | 20; several hundred | hundreds of
"""
_TIMES = """
on Monday | at the start of the week; at dawn | early in the morning; in January | after New Year
at midnight | in the middle of the night; last summer | in the warm months of the past year
yesterday | one day ago; after lunch | in the early afternoon; before Christmas | in late December
"""
_MANNERS = """
quickly | in great haste; carefully | with great caution; single-handedly | without any help
in silence | without saying a word; together with a friend | alongside a companion
for free | without being paid; by mistake | accidentally
"""
_CIRCUMSTANCES = """
although it was raining | despite the wet weather
because a storm was coming | since dangerous winds were on their way
while the radio was playing | with music on in the background
before the visitors arrived | ahead of the guests' arrival
as everybody else watched | in front of a crowd of onlookers
even though the money had run out | despite the lack of funds
while the others were fast asleep | when nobody else was awake
"""

Wordings = tuple[str, ...]


@dataclass(frozen=True)
class _Action:
    verbs: Wordings
    things: tuple[Wordings, ...]


@dataclass(frozen=True)
class _Scene:
    places: tuple[Wordings, ...]
    actors: tuple[Wordings, ...]
    actions: tuple[_Action, ...]


@dataclass(frozen=True)
class _Event:
    """What a sentence tells; every part in all its wordings, and None where it tells none."""

    scene: _Scene
    actor: Wordings
    adjective: Wordings | None
    action: _Action
    thing: Wordings
    count: Wordings | None
    place: Wordings | None
    time: Wordings | None
    manner: Wordings | None
    circumstance: Wordings | None
    happened: bool = True


class _Draw:
    """Random choices by ``random()`` alone, the only method that never changes with Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def one(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def other(self, items: Sequence[T], than: T) -> T:
        return self.one([item for item in items if item != than])

    def maybe(self, items: Sequence[T], probability: float) -> T | None:
        return self.one(items) if self.chance(probability) else None


def builtin_pairs(split: str) -> Pairs:
    """The built-in pairs of a split, graded 0 to 5: train 400, validation 150, test 150.

    They are the same on every machine, and no sentence occurs twice.

    Raises:
        TwinlineError: there is no such split.
    """
    if split not in SPLITS:
        raise TwinlineError(f"builtin has no split {split!r}: give one of {', '.join(SPLITS)}.")
    names = list(SPLITS)
    start = sum(SPLITS[name] for name in names[: names.index(split)])
    rows = _rows()[start : start + SPLITS[split]]
    first, second, grades = ([row[i] for row in rows] for i in range(3))
    score = np.asarray(grades, np.float64)
    return Pairs([str(s) for s in first], [str(s) for s in second], score, (0, 5), "builtin", split)


@cache
def _rows() -> list[tuple[str, str, int]]:
    draw = _Draw(_SEED)
    rows: list[tuple[str, str, int]] = []
    seen: set[str] = set()
    while len(rows) < sum(SPLITS.values()):
        grade = draw.one(range(6))
        event = _any_event(draw, draw.one(_scenes()))
        if grade == 1 and event.place is None:
            continue
        first, used = _tell(event, draw)
        # The best grade must not be readable from shared words.
        avoid = [wording for wording in used if draw.chance(0.5)] if grade == 5 else []
        second, _ = _tell(_CHANGES[grade](event, draw), draw, avoid)
        if first != second and not {first, second} & seen:
            seen |= {first, second}
            rows.append((first, second, grade) if draw.chance(0.5) else (second, first, grade))
    return rows


# The lexicon


def _wordings(line: str) -> Wordings:
    return tuple(wording.strip() for wording in line.split("|"))


@cache
def _choices(lexicon: str) -> tuple[Wordings, ...]:
    return tuple(_wordings(choice) for choice in re.split(r"[;\n]", lexicon.strip()))


@cache
def _scenes() -> tuple[_Scene, ...]:
    return tuple(_scene(paragraph) for paragraph in _SCENES.strip().split("\n\n"))


def _scene(paragraph: str) -> _Scene:
    lines: dict[str, list[str]] = {"place": [], "actor": [], "event": []}
    for line in paragraph.splitlines():
        kind, content = line.split(": ", 1)
        lines[kind].append(content)
    actions = (event.split(": ") for event in lines["event"])
    return _Scene(
        tuple(map(_wordings, lines["place"])),
        tuple(map(_wordings, lines["actor"])),
        tuple(_Action(_wordings(verbs), _choices(things)) for verbs, things in actions),
    )


# Events and their changes

_DETAILS = {"time": _TIMES, "manner": _MANNERS, "circumstance": _CIRCUMSTANCES}


def _any_event(draw: _Draw, scene: _Scene) -> _Event:
    action = draw.one(scene.actions)
    return _Event(
        scene=scene,
        actor=draw.one(scene.actors),
        adjective=draw.maybe(_choices(_ADJECTIVES), 0.4),
        action=action,
        thing=draw.one(action.things),
        count=draw.maybe(_choices(_COUNTS), 0.5),
        place=draw.maybe(scene.places, 0.6),
        time=draw.maybe(_choices(_TIMES), 0.45),
        manner=draw.maybe(_choices(_MANNERS), 0.3),
        circumstance=draw.maybe(_choices(_CIRCUMSTANCES), 0.3),
    )


def _same(event: _Event, draw: _Draw) -> _Event:
    return event


def _drop_detail(event: _Event, draw: _Draw) -> _Event:
    told = [name for name in ("place", *_DETAILS) if getattr(event, name)]
    # Leaving a detail out of one sentence is adding it in the other: a pair has no direction.
    return replace(event, **({draw.one(told): None} if told else _added_detail(draw)))


def _added_detail(draw: _Draw) -> dict[str, Wordings]:
    name = draw.one(list(_DETAILS))
    return {name: draw.one(_choices(_DETAILS[name]))}


def _change_detail(event: _Event, draw: _Draw) -> _Event:
    others: dict[str, Sequence[Wordings]] = {"thing": event.action.things}
    if event.count:
        others["count"] = _choices(_COUNTS)
    if event.place:
        others["place"] = event.scene.places
    if event.time:
        others["time"] = _choices(_TIMES)
    name = draw.one(list(others))
    return replace(event, **{name: draw.other(others[name], getattr(event, name))})


def _change_action(event: _Event, draw: _Draw) -> _Event:
    if draw.chance(0.3):
        return replace(event, happened=False)
    action = draw.other(event.scene.actions, event.action)
    return replace(
        _any_event(draw, event.scene),
        actor=event.actor,
        adjective=event.adjective,
        action=action,
        thing=draw.one(action.things),
        place=event.place,
    )


def _keep_place(event: _Event, draw: _Draw) -> _Event:
    action = draw.other(event.scene.actions, event.action)
    return replace(
        _any_event(draw, event.scene),
        actor=draw.other(event.scene.actors, event.actor),
        action=action,
        thing=draw.one(action.things),
        place=event.place,
    )


def _change_all(event: _Event, draw: _Draw) -> _Event:
    changed = _any_event(draw, draw.other(_scenes(), event.scene))
    shared = {
        name: getattr(event, name) for name in ("adjective", "count", *_DETAILS) if draw.chance(0.5)
    }
    return replace(changed, **shared)


_CHANGES: tuple[Callable[[_Event, _Draw], _Event], ...] = (
    _change_all, _keep_place, _change_action, _change_detail, _drop_detail, _same,
)  # fmt: skip


# Sentences


def _tell(event: _Event, draw: _Draw, avoid: Sequence[str] = ()) -> tuple[str, list[str]]:
    """A sentence of the event, and the wordings and the order it uses.

    Those in ``avoid`` are used only where there is no other.
    """
    used: list[str] = []

    def choose(wordings: Sequence[str]) -> str:
        fresh = [wording for wording in wordings if wording not in avoid]
        chosen = draw.one(fresh or wordings)
        used.append(chosen)
        return chosen

    actor = choose(event.actor)
    if event.adjective:
        actor = f"{choose(event.adjective)} {actor}"
    actor = f"the {actor}" if draw.chance(0.5) else _with_article(actor)
    thing = choose(event.thing)
    counted = f"{choose(event.count)} {_plural(thing)}" if event.count else _with_article(thing)
    verb = choose(event.action.verbs)
    core = _ORDERS[choose(list(_ORDERS))](actor, verb, counted, event)
    told = [choose(w) for w in (event.manner, event.place, event.time, event.circumstance) if w]
    front = choose(["front", "back"]) == "front" and len(told) > 1
    sentence = f"{told.pop()}, {' '.join([core, *told])}" if front else " ".join([core, *told])
    return f"{sentence[0].upper()}{sentence[1:]}.", used


def _active(actor: str, verb: str, counted: str, event: _Event) -> str:
    return f"{actor} {_past(verb) if event.happened else f'did not {verb}'} {counted}"


def _passive(actor: str, verb: str, counted: str, event: _Event) -> str:
    was = ("were" if event.count else "was") + ("" if event.happened else " not")
    return f"{counted} {was} {_past(verb)} by {actor}"


_ORDERS = {"active": _active, "passive": _passive}


def _past(verb: str) -> str:
    first, *rest = verb.split(" ", 1)
    past = f"{first}d" if first[-1] == "e" else re.sub(r"(?<=[^aeiou])y$", "i", first) + "ed"
    return " ".join([past, *rest])


def _plural(thing: str) -> str:
    head, *rest = re.split(r"(?= of | for | to | against )", thing, maxsplit=1)
    if re.search(r"(s|x|ch|sh)$", head):
        plural = f"{head}es"
    else:
        plural = f"{re.sub(r'(?<=[^aeiou])y$', 'ie', head)}s"
    return "".join([plural, *rest])


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
