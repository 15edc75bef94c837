"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.answer import Answer, run_while_connected
from server.api.client_key import client_key
from server.api.completion import ChunkEncoder, CompletionCollector, CompletionHead, system_fingerprint
from server.api.convert import parse_body, to_chat_request
from server.api.middleware import note_access
from server.api.responses import JsonResponse
from server.api.schemas import ChatCompletionBody, WireStreamOptions
from server.api.services import services_of
from server.api.sse import AnswerStream
from server.api.timings import access_fields, server_timing
from server.api.unsupported import ignored_header, is_accepted, refuse_or_list_unsupported, without

routes = APIRouter(tags=["Chat"])


@routes.post("/v1/chat/completions", response_class=Response)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    services = services_of(request)
    body = parse_body(ChatCompletionBody, await request.body())
    note_access(request.scope, model=repr(body.model[:256]))
    route = await services.router.route(body.model, may_fetch=True)
    ignored = refuse_or_list_unsupported(body, services.config, route.backend)
    headers, body = ignored_header(ignored), without(body, ignored)
    chat_request = to_chat_request(body, route.spec, services.config, client_key(request.headers))
    head = CompletionHead(model=body.model, system_fingerprint=system_fingerprint(str(route.spec)))
    answer = Answer(route, chat_request, lambda backend: is_accepted(body, backend, ignored))
    if body.stream:
        options = body.stream_options or WireStreamOptions()
        encoder = ChunkEncoder(
            head,
            chat_request.n,
            include_usage=bool(options.include_usage),
            timings_of=(lambda: answer.backend) if options.include_timings else None,
        )
        return AnswerStream(answer, encoder, services.config, headers)
    collector = CompletionCollector(head, chat_request.n, logprobs=chat_request.top_logprobs is not None)
    return await run_while_connected(request.receive, _whole_answer(request, answer, collector, headers))


async def _whole_answer(
    request: Request, answer: Answer, collector: CompletionCollector, headers: Mapping[str, str]
) -> Response:
    async with answer:
        async for batch in answer.batches():
            collector.add(batch)
    result, finished = collector.result()
    note_access(request.scope, **access_fields(finished))
    timing = {"server-timing": server_timing(finished.timings)}
    return JsonResponse(result, headers={**headers, **answer.headers, **timing})
