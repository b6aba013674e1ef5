"""Memory of a student at work on the target: its weights, and the most that one forward pass holds beside them."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel

from kdsearch.machine import threads
from kdsearch.study_file import Target


def peak_bytes(student: PreTrainedModel, target: Target) -> int:
    """Bytes of the weights and of the most tensors that live at once in a forward pass on the target's batch of full-length sequences.

    On a CPU the tensors are counted as they come and go, which is exact and the same each time; scratch space inside an operation is not
    seen. On a GPU torch's allocator tells, in its blocks, with what operations take for themselves.
    """
    device = torch.device(target.device)
    student.eval().to(device)  # pyright: ignore[reportArgumentType] - transformers' own annotation
    kept = _bytes_of([*student.parameters(), *student.buffers()])
    with torch.no_grad(), threads(target.threads):
        return kept + (_allocated(student, target) if target.device == "cuda" else _counted(student, target))


def _run(student: PreTrainedModel, target: Target) -> None:
    ids = torch.ones((target.batch_size, target.sequence_length), dtype=torch.long, device=target.device)
    student(input_ids=ids, attention_mask=torch.ones_like(ids))


def _counted(student: PreTrainedModel, target: Target) -> int:
    with Count(_storages([*student.parameters(), *student.buffers()])) as count:
        _run(student, target)
    return count.most


def _allocated(student: PreTrainedModel, target: Target) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _run(student, target)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


class Count(TorchDispatchMode):
    """While open, counts the bytes of the tensors that operations make and let go; ``most`` is the largest sum at once. Storages of
    ``known`` do not count, nor does a view of anything."""

    def __init__(self, known: Iterable[torch.UntypedStorage] = ()) -> None:
        super().__init__()
        self.seen = {storage._cdata for storage in known}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and look at what it made."""
        return tree_map_only(Tensor, self._look, func(*args, **(kwargs or {})))

    def _look(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self.seen:
            self.seen.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, key, storage.nbytes())
        return tensor

    def _let_go(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """What tensors lie in, each once."""
    return list({storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(storage.nbytes() for storage in _storages(tensors))
