"""What the sparse kernels gain: layers, whole training steps and memory beside PyTorch's dense ones, on one thread.

`python -m benchmarks.kernels [layers step memory plot models]` runs these parts, or all; `--quick` only shows in a minute that they work.

Sides are measured in one process and in turn (A B A B ...), because the speed of a shared machine drifts within seconds. A ratio is the
median of the ratios of neighbours; beside it stands the fastest time of each side. PyTorch's float32 side is the faster one of the
contiguous and the channels-last layout, found by measurement for each layer.

    layers  the 3x3 convolutions of CIFAR ResNet-18 (width 64, batch 32; 7 different ones, 16 in the network): forward pass, gradient
            of input and weights. `ours` is `SparseConv2d` on batch-last tensors, as between neighbours on the kernels. With gradient
            masks (DGM) it computes weight gradients at 80 % of the active weights (q = 1 - 0.8 density: 0.96, 0.92 and 0.80), as 29 of 30
            steps do. The mean is geometric, over the 16 layers. Errors: the largest difference of input and weight gradients to float64,
            relative to the largest value.
    step    one whole training step of the real `Learner`, which is `SessionLoop.step`: forward, loss, backward, SGD, buffer; nothing is
            augmented. Gradient masks are drawn every 30 steps. That step computes all gradients and the one behind it makes new lists; both
            are measured by themselves, and a step is (draw + next + 28 others) / 30. `kernels` has every sparse layer on them (mode
            `sparse`), `dense products` none (mode `dense`: masked weights). `dense` is the fastest of three: the learner at sparsity 0,
            and a plain PyTorch loop (cross-entropy for every part of the loss, `torch.optim.SGD`) in both layouts. Model and data are made
            before; what a session does at its beginning and end is not timed.
    memory  peak of the resident set in three steps, the first of which draws gradient masks, above its level before the model was
            built. A fresh process for each figure. Before the level is read, everything is imported and a small network has trained.
            The peak is the system's own mark (VmHWM, set back through /proc/self/clear_refs) or, where that cannot be written, the
            largest of samples taken every millisecond. glibc gets one arena and a fixed size from which on a block is mapped by itself,
            so it returns what is freed, and figures repeat. `held` is what is left behind the last step: model, lists, masks, buffer.
            Dense is PyTorch's usual order: all parts of the loss go forward, and one backward pass follows. `in turn` is the
            learner's: a part's backward pass comes before the next one's forward pass; sgd has one part. `sparsity alone` has sparse
            weights and gradients on the kernels, but what normalisations and ReLUs put out is stored, as in PyTorch. `everything` is the
            learner as it is.
    plot    speed-up of each layer over sparsity, with gradient masks, and where it crosses 1.
    models  a training step of every model by name at batch 32 on 32x32x3 (sgd), dense and at sparsity 0.9 with kernels as `auto` chooses
            them: sessions of two steps, gradient masks drawn in the first. CPU time of the thread.

SparseProp (PyPI: sparseprop 0.1.14, C++ for AVX2) joins `layers` where it can be imported. It has no gradient masks. Of its two
vectorisations the faster one is taken for each layer, each on the layout it likes. In an environment of its own beside ours:

    python -m venv /tmp/peer
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/peer/lib/python3.11/site-packages/ours.pth
    /tmp/peer/bin/python -m pip install pybind11 setuptools wheel
    PATH=/tmp/peer/bin:$PATH /tmp/peer/bin/python -m pip install --no-build-isolation --no-deps sparseprop==0.1.14
    /tmp/peer/bin/python -m benchmarks.kernels layers
"""
