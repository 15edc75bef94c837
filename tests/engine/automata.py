"""Grammars without a grammar: automata over tokens that keep account of what the engine asks of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scripted import END, NUM_LETTERS, Model

from server.core.errors import LlmspellError
from server.engine.constraint import Allowed
from server.engine.drafting import Draft


@dataclass(frozen=True)
class Automaton:
    """Where each token leads from each state, which are numbered; state 0 is the first.

    Where an answer may end, so that an end token is allowed, is a final state.
    """

    steps: Sequence[Mapping[int, int]]
    final: frozenset[int]

    def __post_init__(self) -> None:
        assert all(steps or state in self.final for state, steps in enumerate(self.steps)), "a dead end"

    @classmethod
    def of(cls, *answers: Sequence[int]) -> Automaton:
        """Return the automaton of exactly these answers."""
        states: dict[tuple[int, ...], int] = {}
        for answer in answers:
            for length in range(len(answer) + 1):
                states.setdefault(tuple(answer[:length]), len(states))
        steps: list[dict[int, int]] = [{} for _ in states]
        for begun, state in states.items():
            if begun:
                steps[states[begun[:-1]]][begun[-1]] = state
        return cls(steps, frozenset(states[tuple(answer)] for answer in answers))

    @classmethod
    def random(cls, seed: int, num_tokens: int = NUM_LETTERS) -> Automaton:
        """Return one with narrow states and wide ones, and chains in which one token is left."""
        numbers = random.Random(seed)
        num_states = numbers.randint(2, 9)
        steps: list[dict[int, int]] = []
        for state in range(num_states):
            most = numbers.choice([1, 1, 2, 3, num_tokens - 1])
            tokens = numbers.sample(range(1, num_tokens), numbers.randint(1, most))
            steps.append({token: numbers.randint(0, num_states) for token in tokens})
            if numbers.random() < 0.5:
                steps[-1] = dict.fromkeys(tokens, state + 1)
        steps.append({})
        return cls(steps, frozenset({num_states, *numbers.sample(range(num_states), numbers.randint(0, 2))}))

    def walk(self, tokens: Sequence[int]) -> int | None:
        """Return the state that tokens lead to, ``None`` if they do not."""
        state = 0
        for token in tokens:
            if token not in self.steps[state]:
                return None
            state = self.steps[state][token]
        return state

    def allowed(self, state: int) -> list[int]:
        """Tokens that may come next, in order."""
        return sorted([*self.steps[state], *([END] if state in self.final else [])])

    def greedy(self, model: Model, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
        """Return what a model says under this grammar, without any engine."""
        state, tokens = 0, prompt
        while len(tokens) < len(prompt) + max_tokens and self.steps[state]:
            logits = model(tokens)
            token = max(self.allowed(state), key=lambda token: (logits[token], -token))
            if token == END:
                break
            state, tokens = self.steps[state][token], (*tokens, token)
        return tokens[len(prompt) :]


class Walk:
    """A ``Constraint`` that walks through an automaton. What it is told wrongly, it notes.

    ``fails_after`` tokens it cannot go on; without ``forces`` it does not tell what has to come.
    """

    def __init__(
        self,
        automaton: Automaton,
        *,
        forces: bool = True,
        fails_after: int | None = None,
        num_tokens: int = NUM_LETTERS,
    ) -> None:
        self.accepted: list[int] = []
        self.asked: list[int] = []
        self.complaints: list[str] = []
        self.num_masks = 0
        self._automaton = automaton
        self._forces = forces
        self._fails_after = fails_after
        self._num_tokens = num_tokens
        self._state = 0

    def allows(self, token: int) -> bool:
        self.asked.append(token)
        return token in self._automaton.allowed(self._state)

    def allowed(self) -> Allowed:
        self.num_masks += 1
        mask = np.zeros(self._num_tokens, dtype=np.bool_)
        mask[self._automaton.allowed(self._state)] = True
        return mask

    def accept(self, token: int) -> None:
        if len(self.accepted) == self._fails_after:
            raise TooComplex("The grammar became too complex.")
        self.accepted.append(token)
        if token not in self._automaton.steps[self._state]:
            self.complaints.append(f"{token} after {self.accepted}")
        self._state = self._automaton.steps[self._state][token]

    def forced(self) -> Sequence[int]:
        tokens: list[int] = []
        state = self._state
        while self._forces and len(tokens) < 50 and len(steps := self._automaton.steps[state]) == 1:
            if state in self._automaton.final:
                break
            [(token, state)] = steps.items()
            tokens.append(token)
        return tokens

    @property
    def is_complete(self) -> bool:
        return not self._automaton.steps[self._state]


class TooComplex(LlmspellError):
    """What a constraint fails with."""


class Walks:
    """Makes a walk for each choice, and keeps them."""

    def __init__(
        self,
        automaton: Automaton,
        *,
        forces: bool = True,
        fails_after: int | None = None,
        num_tokens: int = NUM_LETTERS,
    ) -> None:
        self.made: list[Walk] = []
        self._automaton = automaton
        self._forces = forces
        self._fails_after = fails_after
        self._num_tokens = num_tokens

    def __call__(self) -> Walk:
        walk = Walk(self._automaton, forces=self._forces, fails_after=self._fails_after, num_tokens=self._num_tokens)
        self.made.append(walk)
        return walk


class Knowing:
    """A drafter that has been told what will be said, and is wrong at every n-th guess."""

    def __init__(self, texts: Sequence[tuple[int, ...]], *, wrong_every: int = 0) -> None:
        self._texts = texts
        self._wrong_every = wrong_every

    def propose(self, tokens: Sequence[int], most: int) -> Draft | None:
        known = tuple(tokens)
        rest = next((text[len(known) :] for text in self._texts if text[: len(known)] == known), ())
        guesses = [
            max(token - 1, 0) if self._wrong_every and (len(known) + i) % self._wrong_every == 0 else token
            for i, token in enumerate(rest[:most])
        ]
        return Draft(guesses, chance=0.99) if guesses else None
