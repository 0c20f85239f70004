"""Undoing what an encoding did to a message.

An encoding (cast, int8, top-k) makes tensors smaller and says so in the header; `decode` takes the
encodings off again, the last one first. What is claimed is checked against the limits, and against
the tensors that really came, before anything is allocated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from prefect_federated.errors import ProtocolError
from prefect_federated.filters.cast import Cast, CastDecoder
from prefect_federated.filters.claims import Claim, Decoder, claim_of, encodings_of
from prefect_federated.filters.int8 import Int8, Int8Decoder
from prefect_federated.filters.passage import Passage, Point
from prefect_federated.filters.top_k import TopK, TopKDecoder
from prefect_federated.messages import JsonValue, Message, Tensor
from prefect_federated.wire import DEFAULT_LIMITS, Limits, TensorSpec, specs_of

_DECODERS: Mapping[str, Decoder] = {
    Cast.name: CastDecoder(),
    Int8.name: Int8Decoder(),
    TopK.name: TopKDecoder(),
}


def decoded_specs(
    header: Mapping[str, JsonValue],
    specs: Mapping[str, TensorSpec],
    limits: Limits = DEFAULT_LIMITS,
) -> dict[str, TensorSpec]:
    """Returns the dtypes and shapes that a message's tensors have once `decode` is done.

    It reads the message's head only, so the server can refuse an update before it receives it.

    Args:
        header: The message's header.
        specs: The tensors that the head announces, as they travel.
        limits: What a decoder accepts; `message_bytes` holds for the decoded tensors too.

    Raises:
        ProtocolError: the claims do not fit the tensors, or exceed a limit.
    """
    specs = dict(specs)
    for decoder, claims in _stages(header, limits):
        for claim in claims:
            decoder.check(claim, specs)
            for companion in decoder.companions(claim.name):
                del specs[companion]
            specs[claim.name] = claim.spec
        total = sum(spec.size_bytes for spec in specs.values())
        if total > limits.message_bytes:
            raise ProtocolError(
                f"a message decodes to {total:,} bytes; the limit is {limits.message_bytes:,}."
            )
    return specs


def decode(message: Message, passage: Passage, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Returns a message as it was before its encodings, but for what they lose.

    Tensors that were not encoded are the message's own arrays; decoded ones are read-only. A
    message without encodings comes back as it is.

    Args:
        message: What arrived.
        passage: Whose it is; `reference` must be the model as the sender has it, if it sends
            changes of it.
        limits: What a decoder accepts; `message_bytes` holds for the decoded tensors too. Where the
            expected size is known, hand in that.

    Raises:
        ProtocolError: a claim or a value that no encoding of ours has written; nothing is
            allocated for a claim that does not hold.
    """
    if not encodings_of(message.header):
        return message
    try:
        decoded_specs(message.header, specs_of(message.tensors), limits)
        tensors = dict(message.tensors)
        for decoder, claims in _stages(message.header, limits):
            for claim in claims:
                reference = _reference(claim, passage)
                decoded = decoder.decode(claim, tensors, reference)
                decoded.flags.writeable = False
                for companion in decoder.companions(claim.name):
                    del tensors[companion]
                tensors[claim.name] = decoded
    except MemoryError as error:
        raise ProtocolError(f"{_sender(passage)}: no memory to decode it ({error}).") from error
    except ProtocolError as error:
        raise ProtocolError(f"{_sender(passage)}: {error}") from error
    header = {key: value for key, value in message.header.items() if key != "encodings"}
    return replace(message, header=header, tensors=tensors)


def as_received(message: Message, limits: Limits = DEFAULT_LIMITS) -> Message:
    """Returns a message for the sites as they see it: decoded.

    The server takes its tensors as the reference of the sites' updates. Without encodings it is the
    message itself, and costs nothing.
    """
    return decode(message, Passage(Point.ENTERING_SITE), limits)


def _sender(passage: Passage) -> str:
    if passage.point is Point.ENTERING_SERVER:
        return f"an update of site {passage.site!r} for {passage.kind!r}"
    return f"the server's message for {passage.kind!r}"


def _stages(
    header: Mapping[str, JsonValue], limits: Limits
) -> Iterator[tuple[Decoder, list[Claim]]]:
    """Yields what is to be undone, last encoding first."""
    for value in reversed(encodings_of(header)):
        match value:
            case {"encoding": str(name), "options": dict(options), "tensors": dict(claims)}:
                if name not in _DECODERS:
                    known = ", ".join(sorted(_DECODERS))
                    raise ProtocolError(f"encoding {name[:40]!r} is unknown; known are {known}.")
                if len(claims) > limits.tensors:
                    raise ProtocolError(
                        f"an encoding of {len(claims):,} tensors; the limit is {limits.tensors:,}."
                    )
                read = [claim_of(key, claim, options, limits) for key, claim in claims.items()]
                yield _DECODERS[name], read
            case _:
                raise ProtocolError(f"an encoding is {str(value)[:80]}, which says nothing.")


def _reference(claim: Claim, passage: Passage) -> Tensor | None:
    if not claim.is_change:
        return None
    found = None if passage.reference is None else passage.reference.get(claim.name)
    if found is None or specs_of({claim.name: found})[claim.name] != claim.spec:
        there = "none" if found is None else f"{found.dtype} {found.shape}"
        raise ProtocolError(
            f"tensor {claim.name!r} is a change of a model's {claim.spec.dtype} "
            f"{claim.spec.shape}; the model has {there} of that name."
        )
    return found
