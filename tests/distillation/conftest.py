import pytest
import torch
from jaxtyping import config

torch.set_num_threads(1)  # the tensors of these tests are too small to share


@pytest.fixture
def as_installed():
    """Without the run-time check of shapes, as users run: the program itself has to refuse."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
