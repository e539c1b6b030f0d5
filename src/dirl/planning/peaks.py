"""Peak bf16 matrix rates of GPUs, dense, in TFLOP/s, from their makers' data sheets."""

PEAKS: dict[str, float] = {
    "A100": 312.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H200": 989.0,
    "H200 NVL": 835.0,
    "GH200": 989.0,
    "B200": 2250.0,
    "GB200": 2500.0,
}
"""Peaks by what `torch.cuda.get_device_name` contains; the longest entry that it contains counts."""


def peak_tflops(device_name: str) -> float | None:
    """The device's peak; None where it is not in the table."""
    found = [name for name in PEAKS if name.lower() in device_name.lower()]
    return PEAKS[max(found, key=len)] if found else None
