"""Messages between the HTTP front and the engine process: length-prefixed msgpack frames on a socket pair.

A frame is `<uint32 length of the body><uint8 kind><body>`, little-endian, where the body is one protocol dataclass in
msgpack. Decoding checks types, so a frame that is not what its kind says is an error and never a half-filled object.
The two processes come from one installation: there is no version to negotiate.
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import TypeAlias

import msgspec

from mini_infer.protocol import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineInfo,
    EngineView,
    Launching,
    RequestRefused,
    StepOutputs,
    WatchEngine,
)

Message: TypeAlias = (AddRequest | AbortRequest | StepOutputs | EngineInfo | EngineFailed | RequestRefused | WatchEngine
                      | EngineView | Launching)

_KINDS: dict[int, type] = {1: AddRequest, 2: AbortRequest, 3: StepOutputs, 4: EngineInfo, 5: EngineFailed,
                           6: RequestRefused, 7: WatchEngine, 8: EngineView, 9: Launching}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}
_ENCODER = msgspec.msgpack.Encoder()
_DECODERS: dict[int, msgspec.msgpack.Decoder[Message]] = {
    kind: msgspec.msgpack.Decoder(cls) for kind, cls in _KINDS.items()}
_HEADER = struct.Struct("<IB")
MAX_FRAME_BYTES = 1 << 30


class ProtocolError(RuntimeError):
    """Bytes arrived that are no message; the two sides can no longer understand each other."""


def encode(message: Message) -> bytes:
    """One frame. Raises ProtocolError when the message is larger than a frame may be."""
    body = _ENCODER.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message of {len(body)} bytes does not fit in a frame of {MAX_FRAME_BYTES}")
    return _HEADER.pack(len(body), _KIND_OF[type(message)]) + body


class FrameDecoder:
    """Turns a stream of bytes, cut anywhere, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`. Raises ProtocolError on an unknown kind, a bad length or a bad body."""
        self._buffer += data
        messages: list[Message] = []
        position = 0
        while len(self._buffer) - position >= _HEADER.size:
            length, kind = _HEADER.unpack_from(self._buffer, position)
            if kind not in _DECODERS or length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of kind {kind} with {length} bytes")
            end = position + _HEADER.size + length
            if len(self._buffer) < end:
                break
            with memoryview(self._buffer) as view:
                try:
                    messages.append(_DECODERS[kind].decode(view[position + _HEADER.size : end]))
                except msgspec.MsgspecError as error:
                    raise ProtocolError(f"a {_KINDS[kind].__name__} that does not decode: {error}") from None
            position = end
        del self._buffer[:position]
        return messages


class Channel:
    """The engine's end: blocking writes, from any thread, and reads that wait only when asked to."""

    def __init__(self, sock: socket.socket):
        self._socket = sock
        self._socket.setblocking(True)
        self._decoder = FrameDecoder()
        self._writing = threading.Lock()

    def send(self, message: Message) -> None:
        """Write one frame. Raises OSError when the other side is gone."""
        frame = encode(message)
        with self._writing:
            self._socket.sendall(frame)

    def receive(self, wait: bool) -> list[Message]:
        """All messages that have arrived; with `wait`, blocks until there is something to read.

        Raises EOFError when the other side has closed.
        """
        messages: list[Message] = []
        flags = 0 if wait else socket.MSG_DONTWAIT
        while True:
            try:
                data = self._socket.recv(1 << 18, flags)
            except BlockingIOError:
                return messages
            except ConnectionResetError:
                raise EOFError("the front is gone") from None
            if not data:
                raise EOFError("the front is gone")
            messages += self._decoder.feed(data)
            flags = socket.MSG_DONTWAIT
