"""One request to a chat endpoint: what is sent, how long is waited, what is tried again, and what it used.

The `openai` client speaks the protocol. Its own retries are switched off, because ours hold all requests back when the
endpoint is overloaded, count against the pace, and end at the group's deadline; its answers are checked, because other
servers answer in other ways.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dipole.protocol.foreign_answers import OrNone, find_error_message
from dipole.protocol.retry_after import parse_retry_after
from dipole.web.auth import is_loopback
from dipole_rewards.judging.rate_limiter import RateLimiter
from dipole_rewards.judging.settings import JudgeSettings

BUSY_STATUSES = (429, 503)
TRANSIENT_STATUSES = (408, 409, 425, 429)  # and everything from 500
# statuses that say nothing of what was asked for: of a key, of a server that is busy, and of what stands before it
UNRELATED_STATUSES = (401, 402, *TRANSIENT_STATUSES, 502, 503, 504)
QUOTA_CODE = "insufficient_quota"  # OpenAI's 429 that no waiting helps
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0
MAX_ERROR_CHARS = 300

ChatMessage = dict[str, Any]


class CallFailed(Exception):
    """A request that gave no judgement; `code` and the message become the candidate's error.

    `code` is one of: timeout, transport, http_status, invalid_response, refused, no_parse. `status` is the HTTP status
    of an error where there was one, 200 of an error that came as if it were none; `is_transient` says whether the same
    request may succeed later.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        is_transient: bool = False,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.retry_after_s, self.is_transient = code, status, retry_after_s, is_transient

    @property
    def may_be_unsupported(self) -> bool:
        """Whether the endpoint may lack what was asked for: servers say so with 400, and with most other statuses."""
        refused = self.status is not None and (self.status >= 400 or self.status == HTTPStatus.OK)
        return refused and self.status not in UNRELATED_STATUSES

    def after(self, earlier: CallFailed) -> CallFailed:
        """The same failure, which also tells of the one that led to this request, unless that says the same."""
        if str(earlier) in str(self):
            return self
        return CallFailed(
            self.code,
            f"{self}; before that, {earlier}",
            status=self.status,
            retry_after_s=self.retry_after_s,
            is_transient=self.is_transient,
        )


@dataclass
class CallBudget:
    """One group's deadline, in the loop's time, and what it has used so far."""

    deadline: float
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    has_usage: bool = True  # False once an answer did not say what it used


class TokenLogprob(BaseModel):
    token: str
    logprob: float


def _list_logprobs(given: Any) -> Any:
    """`{token: logprob}`, as older servers write it, as a list of both."""
    return (
        [{"token": token, "logprob": logprob} for token, logprob in given.items()] if isinstance(given, dict) else given
    )


def _join_text_parts(given: Any) -> Any:
    """A content of parts as the text in them; thoughts and whatever else is no text are left out."""
    if not isinstance(given, list):
        return given
    texts = [part.get("text") if isinstance(part, dict) else part for part in given]
    return "".join(text for text in texts if isinstance(text, str))


def _take_first(given: Any) -> Any:
    """Only the first choice is read: one was asked for."""
    return given[:1] if isinstance(given, list) else given


_TopLogprobs = Annotated[list[OrNone[TokenLogprob]], BeforeValidator(_list_logprobs)]


class _TokenPosition(BaseModel):
    top_logprobs: OrNone[_TopLogprobs] = None


class _Logprobs(BaseModel):
    """`content` is OpenAI's; `top_logprobs` beside it is that of servers which answer as to /completions."""

    content: OrNone[list[OrNone[_TokenPosition]]] = None
    top_logprobs: OrNone[list[OrNone[_TopLogprobs]]] = None

    def first_token(self) -> list[TokenLogprob]:
        """The likeliest first tokens; none where there is nothing to be read."""
        positions = [*(each and each.top_logprobs for each in self.content or []), *(self.top_logprobs or [])]
        readable = ([one for one in each or [] if one is not None] for each in positions)
        return next(filter(None, readable), [])


class _AssistantMessage(BaseModel):
    content: OrNone[Annotated[str, BeforeValidator(_join_text_parts)]] = None
    refusal: OrNone[str] = None


class _CompletionChoice(BaseModel):
    message: _AssistantMessage
    finish_reason: OrNone[str] = None
    logprobs: OrNone[_Logprobs] = None
    error: OrNone[dict[str, Any]] = None
    """OpenRouter's, of a provider that failed while it answered."""


class _CompletionUsage(BaseModel):
    prompt_tokens: OrNone[int] = None
    completion_tokens: OrNone[int] = None


class _ChatCompletion(BaseModel):
    """What is read of an answer; other fields, and the types of what is only nice to have, differ between servers."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    choices: Annotated[list[_CompletionChoice], Field(min_length=1), BeforeValidator(_take_first)]
    usage: OrNone[_CompletionUsage] = None
    system_fingerprint: OrNone[str] = None


@dataclass(frozen=True)
class ChatReply:
    """`first_token` holds the likeliest first tokens of the answer, where they were asked for and given."""

    text: str
    first_token: list[TokenLogprob]
    fingerprint: str | None


class ChatClient:
    """A model at an endpoint, asked by every group of the process, within one event loop."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._rate_limiter = RateLimiter(
            in_flight=settings.judge_concurrency, per_minute=settings.judge_requests_per_minute
        )
        self._key = settings.judge_key.get_secret_value() if settings.judge_key else None
        self._client = AsyncOpenAI(
            base_url=settings.judge_url,
            api_key=self._key or "none",
            max_retries=0,
            timeout=None,  # ours is for the whole request, a client's for each packet
            http_client=DefaultAsyncHttpxClient(
                trust_env=not is_loopback(urlsplit(settings.judge_url).hostname or ""),  # no proxy on this machine
                follow_redirects=False,  # prompts and images go nowhere else
            ),
        )
        self._headers = {} if self._key else {"Authorization": openai.Omit()}
        self._client.organization = self._client.project = None  # which it takes from other variables

    async def close(self) -> None:
        await self._client.close()

    def open_budget(self, *, seconds: float | None = None) -> CallBudget:
        """For a group that begins now."""
        return CallBudget(asyncio.get_running_loop().time() + (seconds or self._settings.judge_deadline_s))

    async def ask_model(self, messages: list[ChatMessage], budget: CallBudget, **fields: Any) -> ChatReply:
        """One answer, or CallFailed. `fields` go into the request, such as `response_format`."""
        fields = {"temperature": 0, **fields, **self._settings.judge_extra}
        fields = {name: value for name, value in fields.items() if value is not None}
        completion = await self._complete_with_retries(messages, fields, budget)
        usage = completion.usage or _CompletionUsage()
        budget.prompt_tokens += usage.prompt_tokens or 0
        budget.completion_tokens += usage.completion_tokens or 0
        budget.has_usage &= None not in (usage.prompt_tokens, usage.completion_tokens)
        return _reply_of_completion(completion)

    async def list_models(self, budget: CallBudget) -> list[str]:
        """The names that the endpoint offers; none where it does not say."""
        try:
            async with asyncio.timeout_at(budget.deadline):
                return [model.id for model in (await self._client.models.list(extra_headers=self._headers)).data]
        except (openai.OpenAIError, TimeoutError, ValueError, AttributeError, TypeError):
            # a server's malformed list counts as none
            return []

    async def _complete_with_retries(
        self, messages: list[ChatMessage], fields: dict[str, Any], budget: CallBudget
    ) -> _ChatCompletion:
        """Ask until there is an answer, a permanent failure, the last retry or the deadline."""
        loop, failures, before = asyncio.get_running_loop(), 0, ""
        answered: CallFailed | None = None  # the last failure that came as an answer
        if loop.time() >= budget.deadline:
            # a request would be sent and given up
            raise CallFailed("timeout", "the group's deadline had passed")
        try:
            async with asyncio.timeout_at(budget.deadline):
                for attempt in itertools.count():
                    try:
                        async with self._rate_limiter.acquire_slot():
                            budget.calls += 1
                            return await self._complete(messages, fields)
                    except CallFailed as failure:
                        failures += failure.status not in BUSY_STATUSES
                        answered = failure if failure.status is not None else answered
                        told = failure.retry_after_s if failure.status in BUSY_STATUSES else None
                        too_late = told is not None and loop.time() + told > budget.deadline
                        if failures > self._settings.judge_retries or not failure.is_transient or too_late:
                            # a connection that broke says less than the answer before it
                            raise (answered if answered and failure.code == "transport" else failure) from None
                        before = f"; before that, {failure}"
                    if told is not None:
                        self._rate_limiter.pause_all(max(told, FIRST_BACKOFF_S))
                    else:
                        backoff_s = min(FIRST_BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
                        await asyncio.sleep(backoff_s * random.uniform(0.75, 1.25))  # noqa: S311
        except TimeoutError:
            raise CallFailed("timeout", f"no judgement before the group's deadline{before}") from None
        raise AssertionError("itertools.count() does not end")

    async def _complete(self, messages: list[ChatMessage], fields: dict[str, Any]) -> _ChatCompletion:
        seconds = self._settings.judge_call_timeout_s
        try:
            async with asyncio.timeout(seconds) as limit:
                raw = await self._client.chat.completions.with_raw_response.create(
                    messages=messages,  # type: ignore[arg-type]
                    model=self._settings.judge_model,
                    extra_body=fields,  # not all servers' fields are arguments
                    extra_headers=self._headers,
                )
            return self._parse_completion(raw.content)
        except TimeoutError:
            # the group's deadline, which is the caller's to tell
            if not limit.expired():
                raise
            raise CallFailed("timeout", f"the judge did not answer within {seconds:g} s", is_transient=True) from None
        except openai.APIStatusError as error:
            said = find_error_message(error.response.content) or error.response.text or "nothing"
            raise self._failure_of_status(
                error.status_code,
                f"answered {error.status_code}: {said}",
                retry_after_s=parse_retry_after(error.response.headers.get("retry-after")),
                is_quota=error.code == QUOTA_CODE,
            ) from None
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            reason = self._redact_line(str(cause) or type(cause).__name__)
            message = f"the judge's endpoint could not be asked: {reason}"
            raise CallFailed("transport", message, is_transient=True) from None

    def _parse_completion(self, body: bytes) -> _ChatCompletion:
        """Raises CallFailed for what is none; an error that came with status 200 is told in the server's words."""
        try:
            completion = _ChatCompletion.model_validate_json(body)
        except ValidationError:
            pass
        else:
            if (failed := completion.choices[0].error) is None:
                return completion
            body = json.dumps({"error": failed}).encode()
        said = find_error_message(body)
        if said is None:
            message = "the judge's endpoint did not answer with a chat completion"
            raise CallFailed("invalid_response", message, is_transient=True)
        raise self._failure_of_status(_status_in_body(body), f"answered an error: {said}")

    def _failure_of_status(
        self, status: int, message: str, *, retry_after_s: float | None = None, is_quota: bool = False
    ) -> CallFailed:
        passes = status == HTTPStatus.OK or status >= 500 or status in TRANSIENT_STATUSES
        return CallFailed(
            "invalid_response" if status == HTTPStatus.OK else "http_status",
            f"the judge's endpoint {self._redact_line(message)}",
            status=status,
            retry_after_s=retry_after_s,
            is_transient=passes and not is_quota,
        )

    def _redact_line(self, text: str) -> str:
        """An endpoint's message on one line, with the API key redacted."""
        text = " ".join(text.split())
        return (text.replace(self._key, "[key]") if self._key else text)[:MAX_ERROR_CHARS]


def _status_in_body(body: bytes) -> int:
    """The HTTP status that an error in a 200 names as its `code`, else 200."""
    said = json.loads(body)
    said = said[0] if isinstance(said, list) else said
    error = said.get("error")
    named = [each.get("code") for each in (error, said) if isinstance(each, dict)]
    return next((code for code in named if isinstance(code, int) and 400 <= code < 600), HTTPStatus.OK.value)


def _reply_of_completion(completion: _ChatCompletion) -> ChatReply:
    choice = completion.choices[0]
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise CallFailed(
            "refused", f"the judge refused: {(choice.message.refusal or 'content filter')[:MAX_ERROR_CHARS]}"
        )
    first = choice.logprobs.first_token() if choice.logprobs else []
    return ChatReply(choice.message.content or "", first, completion.system_fingerprint)
