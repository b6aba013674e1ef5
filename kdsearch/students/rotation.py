"""A narrower residual stream by principal components: every token of a wide one is projected to the directions it varies most in.

With an orthonormal basis Q [d, d_S] each matrix that writes to the stream becomes Q^T W and each that reads it W Q. What the norms do is

* exact, for activations of rank d_S, where a norm only reads the stream (norms before each block: Llama, Mistral, Qwen2, GPT-2, all but the
  embeddings' in ModernBERT). Its scale g is folded into the matrices that read it, and sqrt(d / d_S) stands for it, since the narrow norm
  divides by the root of d_S and not of d. LayerNorm subtracts the mean of the channels, so Q maps the direction (1, .., 1) to itself and
  d_S - 1 components are left; its shift b becomes Q^T (b / g), and what that loses goes into the biases of the reading matrices; where
  they have none, the shift is corrected by least squares (exact for a head of fewer classes than d_S).
* an approximation where a norm's output is the stream (norms behind each block, as in BERT). Its scale would become Q^T diag(g) Q, which
  no LayerNorm has. A scale and a shift per component are fitted by least squares to the calibration tokens, from their first two moments,
  with the projected norm taken at its mean; exact only where g is one number and the activations have rank d_S.

What lies outside of the basis is lost in both. Tokens of different length in front of a norm lose different shares.

Reference: Ashkboos et al., *SliceGPT: Compress Large Language Models by Deleting Rows and Columns*, 2024, arXiv 2401.15024. Theirs has a
basis for each block, with a matrix on each residual connection between them; a plain config has none, so here all blocks share one.
"""

import numpy as np
import torch
from scipy.linalg import helmert
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kdsearch.students.families import family_of, tensors_of
from kdsearch.students.families.family import Roles
from kdsearch.students.importance import Calibration, input_role, is_norm, module_of

SMALL = 1e-6


def mistakes(config: PretrainedConfig) -> list[str]:
    """Why the residual stream of a teacher cannot be rotated; empty when it can."""
    if any(roles.count("width") > 1 for roles in tensors_of(config).values()):
        return [
            f"initialization.width: pca cannot be used on this {config.model_type} teacher: its convolution has an activation channel by "
            "channel on the residual stream, which no rotation commutes with; use slice or importance"
        ]
    return []


def rotated(teacher: PreTrainedModel, weights: dict[str, Tensor], roles: Roles, calibration: Calibration, kept: int) -> dict[str, Tensor]:
    """The teacher's weights with the residual stream projected to its first components; at the teacher's own width, the weights as given.

    ``roles``: of the tensors as the student has them.

    Raises:
        ValueError: the calibration has no moments.
    """
    if not calibration.second:
        raise ValueError("pca needs the moments of the calibration tokens; calibrate with moments=True")
    if kept == len(calibration.width):
        return weights
    basis = components(teacher, calibration, kept)
    return project(teacher, weights, roles, calibration, basis)


def components(teacher: PreTrainedModel, calibration: Calibration, kept: int) -> np.ndarray:
    """Orthonormal columns Q [width, kept]: eigenvectors of the tokens' second moment, summed over norms, that of each norm counting alike.

    Under LayerNorm they lie orthogonal to (1, .., 1), whose direction is the last column's partner, and are turned so that it stays itself.
    """
    family, norms = family_of(teacher.config), {name: module_of(teacher, name) for name in calibration.second}
    total = np.zeros_like(next(iter(calibration.second.values())))
    for name, norm in norms.items():
        second, mean = calibration.second[name], calibration.mean[name]
        if not family.pre_norm:  # the stream is what the norm puts out
            scale, shift = (_numbers(getattr(norm, part)) for part in ("weight", "bias"))
            crossed = np.outer(scale * mean, shift)
            second = scale[:, None] * second * scale + crossed + crossed.T + np.outer(shift, shift)
        total += second / np.trace(second)
    if family.rms:
        return _leading(total, kept)
    flat = helmert(len(total)).T  # a basis of all that has mean 0
    inside = flat @ _leading(flat.T @ total @ flat, kept - 1)
    ones = np.ones((len(total), 1)) / np.sqrt(len(total))
    return inside @ helmert(kept) + ones @ np.ones((1, kept)) / np.sqrt(kept)


def project(
    teacher: PreTrainedModel, weights: dict[str, Tensor], roles: Roles, calibration: Calibration, basis: np.ndarray
) -> dict[str, Tensor]:
    """The weights with every axis of the residual stream expressed in the basis [width, kept], norms folded or refitted."""
    found, readers = dict(weights), _readers(teacher)
    norms = [name for name, axes in tensors_of(teacher.config).items() if is_norm(teacher, name, axes)]
    for name in norms:
        if name in readers:
            found |= _folded(name, readers[name], found, basis)
        else:
            found |= _refitted(name, found, calibration, basis)
    done = {part for name in norms for part in (name, _bias(name))}
    q = torch.from_numpy(basis)
    for name, tensor in found.items():
        if name not in done and "width" in roles.get(name, ()):
            axis = roles[name].index("width")
            found[name] = (tensor.double().movedim(axis, -1) @ q).movedim(-1, axis).to(tensor.dtype)
    return found


def _readers(teacher: PreTrainedModel) -> dict[str, list[tuple[str, int]]]:
    """Of a family with norms before each block: the matrices that read each norm (those behind it in its table), with their axis."""
    family, found, last, section = family_of(teacher.config), {}, None, None
    if not family.pre_norm:
        return {}
    for name, roles in tensors_of(teacher.config).items():
        rest = name.removeprefix(f"{family.layer_path}.")
        here = rest.partition(".")[0] if rest != name else None
        last, section = (last, section) if here == section else (None, here)
        if is_norm(teacher, name, roles):
            last = name
        elif last and name.endswith(".weight") and input_role(module := module_of(teacher, name), roles) == "width":
            found.setdefault(last, []).append((name, 0 if isinstance(module, Conv1D) else 1))
    return found


def _folded(name: str, readers: list[tuple[str, int]], weights: dict[str, Tensor], basis: np.ndarray) -> dict[str, Tensor]:
    """A norm that only reads: its scale goes into its readers, its shift stays as far as the basis holds it."""
    scale, (width, kept) = _numbers(weights[name]), basis.shape
    shift = _numbers(weights[_bias(name)]) if _bias(name) in weights else np.zeros(width)
    safe = np.where(np.abs(scale) > SMALL * np.abs(scale).max(), scale, np.inf)
    left = basis.T @ (shift / safe)
    if unbiased := [_numbers(weights[reader].movedim(axis, -1)) for reader, axis in readers if _bias(reader) not in weights]:
        answers = np.concatenate(unbiased)
        left += np.linalg.lstsq(answers * scale @ basis, answers @ (shift - scale * (basis @ left)), rcond=None)[0]
    lost = torch.from_numpy(shift - scale * (basis @ left))
    found = {name: torch.full((kept,), float(np.sqrt(width / kept)), dtype=weights[name].dtype)}
    if _bias(name) in weights:
        found[_bias(name)] = torch.from_numpy(left).to(weights[name].dtype)
    for reader, axis in readers:
        matrix = weights[reader].double().movedim(axis, -1)
        folded = (matrix * torch.from_numpy(scale)).movedim(-1, axis)
        found[reader] = folded.to(weights[reader].dtype)
        if _bias(reader) in weights:
            found[_bias(reader)] = (weights[_bias(reader)].double() + matrix @ lost).to(weights[reader].dtype)
    return found


def _refitted(name: str, weights: dict[str, Tensor], calibration: Calibration, basis: np.ndarray) -> dict[str, Tensor]:
    """A norm whose output is the stream: scale and shift per component, by least squares of Q^T (g z + b) on the narrow norm's output.

    That output is taken to be Q^T z over the root of its mean square, sqrt(E |Q^T z|^2 / d_S).
    """
    scale, (width, kept) = _numbers(weights[name]), basis.shape
    shift = _numbers(weights[_bias(name)]) if _bias(name) in weights else np.zeros(width)
    second, mean = calibration.second[name], calibration.mean[name]
    covariance = second - np.outer(mean, mean)
    turned = covariance @ basis
    variance, shared = (basis * turned).sum(0), (basis * scale[:, None] * turned).sum(0)
    unit = np.sqrt(np.trace(basis.T @ second @ basis) / kept)
    known = variance > SMALL * variance.max()
    slope = np.where(known, shared / np.where(known, variance, 1.0), scale.mean())
    intercept = basis.T @ (scale * mean + shift) - slope * (basis.T @ mean)
    fitted = {name: slope * unit, **({_bias(name): intercept} if _bias(name) in weights else {})}
    return {part: torch.from_numpy(values).to(weights[part].dtype) for part, values in fitted.items()}


def _leading(symmetric: np.ndarray, kept: int) -> np.ndarray:
    """Eigenvectors of the largest eigenvalues, as columns, each with its largest entry positive."""
    vectors = np.linalg.eigh(symmetric)[1][:, ::-1][:, :kept]
    return vectors * np.where(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])] < 0, -1.0, 1.0)


def _bias(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _numbers(weight: Tensor) -> np.ndarray:
    return weight.detach().double().cpu().numpy()
