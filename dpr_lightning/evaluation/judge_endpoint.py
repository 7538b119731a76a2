"""Parallel requests to an OpenAI-compatible endpoint, with cached replies and within a budget."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr_lightning.errors import InputError

CHARACTERS_A_TOKEN = 3
"""Number of characters a token for estimates, below that of texts, so that a request's cost is overestimated."""


@dataclass(frozen=True)
class EndpointSpec:
    """Address, options and prices of the judge.

    Args:
        model: name of the model at the endpoint.
        base_url: of an OpenAI-compatible API; None: OpenAI's, or the environment's OPENAI_BASE_URL.
        api_key: the key; None: the environment's OPENAI_API_KEY. A local server takes any word.
        temperature: of the replies.
        max_tokens: of a reply.
        timeout: seconds to wait for a reply.
        retries: further attempts after a timeout, a full queue (429) or a failing server (5xx), each after a longer
            wait.
        parallel: requests under way at once.
        budget: dollars this run may spend; None: no limit.
        input_price: dollars a million tokens read.
        output_price: dollars a million tokens written.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = None
    temperature: float = 0.0
    max_tokens: int = 300
    timeout: float = 60.0
    retries: int = 5
    parallel: int = 4
    budget: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a budget without prices, and numbers out of range."""
        if self.budget is not None and self.input_price <= 0 and self.output_price <= 0:
            raise InputError("A `budget` needs `input_price` and `output_price`, in dollars a million tokens.")
        if self.parallel < 1 or self.retries < 0 or self.max_tokens < 1:
            raise InputError("`parallel` and `max_tokens` must be at least 1, `retries` at least 0.")

    def cost(self, read: int, generated: int) -> float:
        """Dollars of a request with so many tokens ``read`` and ``generated``."""
        return (read * self.input_price + generated * self.output_price) / 1e6


class Endpoint:
    """Sends requests, and appends each reply to a cache file as soon as it arrives.

    Attributes:
        spent: dollars, of this run.
        requests: number of requests answered in this run; replies from the file are not counted.
    """

    def __init__(self, spec: EndpointSpec, cache: str | Path) -> None:
        """Read the replies of earlier runs from ``cache``, a JSON Lines file.

        Raises:
            InputError: the package openai is missing, or there is no key.
        """
        try:
            import openai
        except ImportError as error:
            raise InputError("A judge needs the package openai: pip install dpr-lightning[judge].") from error
        self.spec, self.cache = spec, Path(cache)
        try:
            self._client = openai.OpenAI(
                api_key=spec.api_key, base_url=spec.base_url, timeout=spec.timeout, max_retries=spec.retries
            )
        except openai.OpenAIError as error:
            raise InputError(f"There is no key for the judge: set OPENAI_API_KEY or `api_key`. ({error})") from error
        self._errors = openai
        self._replies = self._read()
        self._lock = threading.Lock()
        self._reserved = 0.0
        self.spent, self.requests = 0.0, 0

    def ask_all(
        self, questions: Sequence[list[dict[str, str]]], progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """The reply to every question, in order.

        Raises:
            InputError: the endpoint refuses or keeps failing, or the budget is used up; all replies so far are in the
                cache, and the same call goes on from there.
        """
        replies: dict[int, str] = {}
        stopped = threading.Event()

        def answer(index: int) -> None:
            if stopped.is_set():
                return
            try:
                replies[index] = self._ask(questions[index])
            except BaseException:
                stopped.set()
                raise
            if progress is not None:
                progress(1)

        with ThreadPoolExecutor(self.spec.parallel) as pool:
            tasks = [pool.submit(answer, index) for index in range(len(questions))]
        for task in tasks:
            if (error := task.exception()) is not None:
                raise InputError(
                    f"{error} {len(replies)} of {len(questions)} replies are in {self.cache}; run again to go on."
                ) from error
        return [replies[index] for index in range(len(questions))]

    def _ask(self, messages: list[dict[str, str]]) -> str:
        key = self._key(messages)
        if key in self._replies:
            return self._replies[key]
        expected = self._reserve(messages)
        try:
            text, read, generated = self._send(messages)
        finally:
            with self._lock:
                self._reserved -= expected
        with self._lock:
            self.spent += self.spec.cost(read, generated)
            self.requests += 1
            self._replies[key] = text
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            with self.cache.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"key": key, "reply": text, "read": read, "written": generated}) + "\n")
        return text

    def _reserve(self, messages: list[dict[str, str]]) -> float:
        """Reserve the dollars that the request may cost at most until its reply arrives, and return them."""
        characters = sum(len(message["content"]) for message in messages)
        expected = self.spec.cost(characters // CHARACTERS_A_TOKEN, self.spec.max_tokens)
        with self._lock:
            if self.spec.budget is not None and self.spent + self._reserved + expected > self.spec.budget:
                raise InputError(
                    f"The budget of ${self.spec.budget:g} is used up: ${self.spent:.4f} are spent and the next request "
                    f"may cost ${expected:.4f}."
                )
            self._reserved += expected
        return expected

    def _send(self, messages: list[dict[str, str]]) -> tuple[str, int, int]:
        openai, where = self._errors, f"The judge at {self._client.base_url}"
        turns: Any = messages  # of the client's own types, one a role
        try:
            reply: Any = self._client.chat.completions.create(
                model=self.spec.model,
                messages=turns,
                temperature=self.spec.temperature,
                max_tokens=self.spec.max_tokens,
            )
            text = reply.choices[0].message.content or ""
            usage = {} if reply.usage is None else reply.usage.model_dump()
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(f"{where} refuses the key: set OPENAI_API_KEY or `api_key`.") from error
        except openai.RateLimitError as error:
            raise InputError(
                f"{where} answers 429, too many requests or no credit left, after {self.spec.retries} further "
                "attempts. Lower `parallel`, or wait."
            ) from error
        except openai.APITimeoutError as error:
            raise InputError(
                f"{where} did not answer within {self.spec.timeout:g} s in {self.spec.retries + 1} tries."
            ) from error
        except openai.APIStatusError as error:
            raise InputError(f"{where} answers {error.status_code}: {str(error)[:200]}.") from error
        except openai.APIConnectionError as error:
            raise InputError(f"{where} cannot be reached: {error}") from error
        except (openai.OpenAIError, ValueError, AttributeError, LookupError, TypeError) as error:
            raise InputError(
                f"{where} answers with something that is no chat completion: {str(error)[:200]}."
            ) from error
        return text, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0

    def _key(self, messages: list[dict[str, str]]) -> str:
        request = [self.spec.model, str(self._client.base_url), self.spec.temperature, self.spec.max_tokens, messages]
        return hashlib.sha256(json.dumps(request).encode()).hexdigest()

    def _read(self) -> dict[str, str]:
        if not self.cache.is_file():
            return {}
        replies = {}
        for line in self.cache.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                replies[str(entry["key"])] = str(entry["reply"])
            except (ValueError, KeyError, TypeError):
                continue  # a run that was killed while it wrote leaves half a line
        return replies
