"""How much is measured: in full, or quickly to see that it works."""

from dataclasses import dataclass, replace

TARGETS = {  # speed-up over dense by sparsity, on layers and on a whole step
    "layers": {0.95: 8.0, 0.90: 4.5, 0.75: 1.8},
    "step": {0.95: 5.0, 0.90: 3.3, 0.75: 1.6},
}
MEMORY_TARGETS = {"sparsity alone": -0.30, "everything": -0.50}
ERROR_TARGET = 1e-4
KEEP = 0.8  # share of the active weights that gradient masks let through
SEED = 0


@dataclass(frozen=True)
class Settings:
    """What the parts share.

    Attributes:
        width, image, batch: of ResNet-18, its square input, and a step.
        sparsities, methods: of `layers` and `step`.
        memory_methods, memory_batch, memory_variants: of `memory`, whose sparsity is the first one; no variants: all.
        plotted: sparsities of the plot.
        layer_repeats, plot_repeats: turns, each a pass of every side.
        dense_repeats, cycles, normals: of `step`: turns of the dense sides, draws of a gradient mask, and steps that are measured
            between two of them.
        processes: of `memory`, per variant.
        judges: figures are compared with the targets, which are for the full sizes.
    """

    width: int = 64
    image: int = 32
    batch: int = 32
    sparsities: tuple[float, ...] = (0.95, 0.90, 0.75)
    methods: tuple[str, ...] = ("sgd", "er", "derpp")
    memory_methods: tuple[str, ...] = ("sgd", "derpp")
    memory_batch: int = 32
    memory_variants: tuple[str, ...] = ()
    plotted: tuple[float, ...] = (0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
    layer_repeats: int = 11
    plot_repeats: int = 7
    dense_repeats: int = 5
    cycles: int = 5
    normals: int = 2
    processes: int = 3
    judges: bool = True


QUICK = Settings(
    batch=8, sparsities=(0.95,), methods=("sgd",), memory_methods=("sgd",), memory_batch=8, memory_variants=("dense", "everything"),
    plotted=(0.25, 0.75, 0.95), layer_repeats=2, plot_repeats=1, dense_repeats=1, cycles=1, normals=1, processes=1, judges=False,
)  # fmt: skip


def chosen(is_quick: bool, repeats: int | None) -> Settings:
    """`repeats` takes the place of all four counts of repeats."""
    found = QUICK if is_quick else Settings()
    return replace(found, layer_repeats=repeats, plot_repeats=repeats, cycles=repeats, processes=repeats) if repeats else found
