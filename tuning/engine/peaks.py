"""The peak FLOP/s of devices, as their vendors publish it; no torch."""

from __future__ import annotations

import re
from typing import NamedTuple


class Rates(NamedTuple):
    """Dense TFLOP/s by data type, None where the sheet has none."""

    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float | None


_SAYS_NOTHING = re.compile(r"NVIDIA|GEFORCE|TESLA|QUADRO|AMD|INSTINCT|GENERATION|\d+GB?|HBM3E?")
"""Words of a device's name that leave its speed as it is."""

_PEAKS = {
    # NVIDIA's sheets give most numbers with sparsity, which is twice what dense products reach.
    "GB200": Rates(2500, 2500, 1250, 80),  # Blackwell data sheet, GB200 NVL72, a GPU
    "B200": Rates(2250, 2250, 1100, 75),  # Blackwell data sheet, HGX B200, a GPU
    "GH200": Rates(989.5, 989.5, 494.5, 67),  # GH200 data sheet
    "H200": Rates(989.5, 989.5, 494.5, 67),  # H200 data sheet, SXM
    "H200 NVL": Rates(835.5, 835.5, 417.5, 60),  # H200 data sheet, NVL
    "H100": Rates(989.5, 989.5, 494.5, 67),  # H100 data sheet, SXM
    "H100 PCIE": Rates(756.5, 756.5, 378, 51),  # H100 data sheet, PCIe
    "H100 NVL": Rates(835.5, 835.5, 417.5, 60),  # H100 data sheet, NVL
    "H20": Rates(148, 148, 74, 44),  # H20 data sheet
    "A100 SXM4": Rates(312, 312, 156, 19.5),  # A100 data sheet
    "A100 PCIE": Rates(312, 312, 156, 19.5),  # A100 data sheet
    "A40": Rates(149.7, 149.7, 74.8, 37.4),  # A40 data sheet
    "A10": Rates(125, 125, 62.5, 31.2),  # A10 data sheet
    "A10G": Rates(70, 70, 35, 31.5),  # A10G data sheet (AWS)
    "RTX A6000": Rates(154.8, 154.8, 77.4, 38.7),  # RTX A6000 data sheet
    "RTX 6000 ADA": Rates(364.2, 364.2, 182.1, 91.1),  # Ada professional whitepaper
    "L40S": Rates(362, 362, 183, 91.6),  # L40S data sheet
    "L40": Rates(181, 181, 90.5, 90.5),  # L40 data sheet
    "L4": Rates(121, 121, 60, 30.3),  # L4 data sheet
    "RTX 5090": Rates(209.5, 209.5, 104.8, 104.8),  # RTX Blackwell whitepaper, fp32 accumulation
    "RTX 4090": Rates(165.2, 165.2, 82.6, 82.6),  # Ada whitepaper, fp32 accumulation
    "RTX 3090": Rates(71, 71, 35.6, 35.6),  # GA102 whitepaper, fp32 accumulation
    "V100 SXM2": Rates(None, 125, None, 15.7),  # V100 data sheet, without bfloat16
    "V100 PCIE": Rates(None, 112, None, 14),  # V100 data sheet
    "V100S PCIE": Rates(None, 130, None, 16.4),  # V100 data sheet
    "T4": Rates(None, 65, None, 8.1),  # T4 data sheet, without bfloat16
    "MI300X": Rates(1307.4, 1307.4, None, 163.4),  # MI300X data sheet
    "MI250X": Rates(191.5, 191.5, None, 47.9),  # MI250X data sheet: 383 and 95.7 for two devices
}
"""By the words of a name that say something. Only what a vendor's sheet states."""


def rates_of(name: str) -> Rates | None:
    """The rates of a device by the name that its driver gives it. A name with anything in it that
    the table does not know, such as a partition or a laptop's variant, is unknown."""
    words = re.split(r"[\s-]+", name.upper())
    return _PEAKS.get(" ".join(word for word in words if not _SAYS_NOTHING.fullmatch(word)))
