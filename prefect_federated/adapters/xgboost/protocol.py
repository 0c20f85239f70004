"""The messages of XGBoost's federated protocol: four unary calls, each with sequence and rank.

XGBoost's client sends the same four calls to whatever server it is told of. The types are made here
from their field numbers, so that no generated code and no file of XGBoost's is needed.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

SERVICE = "xgboost.collective.federated.Federated"
"""Full name of the gRPC service."""
METHODS = ("Allgather", "AllgatherV", "Allreduce", "Broadcast")
"""Its calls; each takes an `<name>Request` and returns an `<name>Reply`."""
DATA_TYPES = (
    "float16", "float32", "float64", "longdouble", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64",
)  # fmt: skip
"""numpy's name of each data type, by its number in the protocol."""
REDUCTIONS = ("max", "min", "sum", "and", "or", "xor")
"""What an allreduce does, by its number in the protocol; the last three are bitwise."""

_PACKAGE = SERVICE.rpartition(".")[0]
_UINT64, _INT32, _BYTES, _ENUM = 4, 5, 12, 14  # numbers of protobuf's own field types
_IN_ALL = (("sequence_number", _UINT64), ("rank", _INT32), ("send_buffer", _BYTES))
_MORE = {
    "Allreduce": (("data_type", _ENUM), ("reduce_operation", _ENUM)),
    "Broadcast": (("root", _INT32),),
}
_ENUMS = {"data_type": ("DataType", DATA_TYPES), "reduce_operation": ("Reduction", REDUCTIONS)}


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="prefect_federated/xgboost_collective.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.values():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=f"{name}_{value}".upper(), number=number)
    for method in METHODS:
        request = file.message_type.add(name=f"{method}Request")
        for number, (name, kind) in enumerate((*_IN_ALL, *_MORE.get(method, ())), start=1):
            added = request.field.add(name=name, number=number, type=cast(Any, kind), label=1)
            if kind == _ENUM:
                added.type_name = f".{_PACKAGE}.{_ENUMS[name][0]}"
        reply = file.message_type.add(name=f"{method}Reply")
        reply.field.add(name="receive_buffer", number=1, type=cast(Any, _BYTES), label=1)
    return file


def message_types() -> Mapping[str, type[Message]]:
    """Returns the types of requests and replies, by name such as "AllreduceRequest"."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    find: Callable[[str], Any] = pool.FindMessageTypeByName
    return {
        name: message_factory.GetMessageClass(find(f"{_PACKAGE}.{name}"))
        for method in METHODS
        for name in (f"{method}Request", f"{method}Reply")
    }
