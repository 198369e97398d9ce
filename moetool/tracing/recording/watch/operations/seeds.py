"""Gradients that carry the numbers of tokens back to the outputs of experts.

A block adds up its experts' outputs, each multiplied by a weight. The gradient that reaches such an
output is the gradient at its token, times the weight. So gradients that spell the token's number
show both.
"""

from __future__ import annotations

import torch

# Digits must survive a product with a weight: bfloat16 has 8 bits.
_BASE, _BASE_OF_HALF = 64, 8
_HALF_BYTES = 2
# Results for rows whose gradient is zero, and for rows that have no single token.
EMPTY, STRANGE = -1, -2
# Roundings by which two gradients of the same row may differ.
_ROUNDINGS = 4


class TokenSeeds:
    """Gradients at a block's output, by which the tokens of its experts' outputs are known.

    None of their numbers is zero, so that they confirm a weight in every column.

    Attributes:
        numbers: They spell each token's number, and have signs in the other columns.
            # (num_tokens, hidden_size)
    """

    def __init__(self, output: torch.Tensor) -> None:
        num_tokens, width = output.shape
        self._base = _BASE_OF_HALF if output.dtype.itemsize <= _HALF_BYTES else _BASE
        self._num_digits = 1
        while self._base**self._num_digits < num_tokens:
            self._num_digits += 1
        self.is_wide_enough = width > self._num_digits
        tokens = torch.arange(num_tokens, device=output.device)
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(0, 2, output.shape, generator=generator, device="cpu")
        self.numbers = (2 * bits - 1).to(output)
        self.numbers[:, 0] = 1
        for digit in range(min(self._num_digits, width - 1)):
            self.numbers[:, 1 + digit] = (tokens // self._base**digit) % self._base + 1

    def read(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token of each row and the weight with which the row was added to it.

        Args:
            numbers: The gradients that came back for `numbers`. # (num_rows, hidden_size)

        Returns:
            Both # (num_rows,); the tokens may be `EMPTY` or `STRANGE`.
        """
        weights = numbers[:, 0]
        is_empty = (numbers == 0).all(dim=1)
        if not self.is_wide_enough or numbers.shape[1] != self.numbers.shape[1]:
            return torch.where(is_empty, EMPTY, STRANGE), weights
        ratios = numbers[:, 1 : 1 + self._num_digits].double() / weights.double()[:, None]
        digits = ratios.round().nan_to_num(nan=1, posinf=1, neginf=1).clamp(1, self._base) - 1
        scale = self._base ** torch.arange(self._num_digits, device=numbers.device)
        tokens = (digits.long() * scale).sum(dim=1).clamp(max=len(self.numbers) - 1)
        rounding = _ROUNDINGS * torch.finfo(numbers.dtype).eps
        expected = weights.double()[:, None] * self.numbers[tokens].double()
        is_token = ((numbers.double() - expected).abs() <= rounding * expected.abs()).all(dim=1)
        tokens = torch.where(is_token & (weights != 0), tokens, STRANGE)
        return torch.where(is_empty, EMPTY, tokens), weights
