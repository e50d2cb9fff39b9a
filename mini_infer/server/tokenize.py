"""POST /tokenize and /detokenize, in vLLM's form: what the model will see of a text or a conversation."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.responses import Response

from mini_infer.protocol import RequestError
from mini_infer.server.body import json_router, validated
from mini_infer.server.front import Front, json_response
from mini_infer.server.schemas import Conversation, RequestModel, TokenIds, Tools, shown

SMALL = 4000  # ids; what more of them mean is found beside the event loop


class TokenizePrompt(RequestModel):
    prompt: str
    model: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(Conversation):
    """A conversation as the chat template writes it."""

    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False
    tools: Tools | None = None


class DetokenizeRequest(RequestModel):
    tokens: Annotated[TokenIds, shown(items={"minimum": 0})]
    model: str | None = None


class EitherOf:
    """Makes the schema of the API show a body as one of two models."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, show: GetJsonSchemaHandler) -> JsonSchemaValue:
        return show(TypeAdapter(TokenizePrompt | TokenizeChat).core_schema)


def tokenize_routes(front: Front) -> APIRouter:
    router = json_router()

    @router.post("/tokenize", summary="The token ids of a text or a conversation")
    async def tokenize(body: Annotated[dict[str, Any], EitherOf()]) -> Response:
        # One of two models, told apart by a field: as a union, what is wrong would be said of both.
        if ("messages" in body) == ("prompt" in body):
            raise RequestError("one of prompt and messages must be given", "prompt")
        request = validated(TokenizeChat, body) if "messages" in body else validated(TokenizePrompt, body)
        front.model_name(request.model)
        with request.errors_as_sent():
            if isinstance(request, TokenizeChat):
                tools = [tool.model_dump(exclude_none=True) for tool in request.tools] if request.tools else None
                text = await front.render(request, tools)
            else:
                text = request.prompt
            ids = await front.encode(text, request.add_special_tokens)

        def spell() -> list[str | None]:
            return [front.tokenizer.id_to_piece(token) for token in ids]

        strs = None
        if request.return_token_strs:
            strs = await asyncio.to_thread(spell) if len(ids) > SMALL else spell()
        return json_response({"count": len(ids), "max_model_len": front.llm.info.max_model_len, "tokens": ids,
                              "token_strs": strs})

    @router.post("/detokenize", summary="The text of token ids")
    async def detokenize(body: DetokenizeRequest) -> Response:
        front.model_name(body.model)
        vocab_size = front.llm.info.vocab_size
        if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < vocab_size:
            wrong = next(token for token in body.tokens if not 0 <= token < vocab_size)
            raise RequestError(f"tokens has token id {wrong}, outside the vocabulary of {vocab_size}", "tokens")

        def work() -> str:
            return front.tokenizer.decode(body.tokens, skip_special_tokens=False)

        text = await asyncio.to_thread(work) if len(body.tokens) > SMALL else work()
        return json_response({"prompt": text})

    return router
