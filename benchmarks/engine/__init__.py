"""What an engine costs: device-rounds per second beside a bare training loop, Flower's own engine and pfl-research.

`python -m benchmarks.engine` runs every side in turn, each in a process of its own, and prints two tables.

The same work on all sides (`work`): a CNN of 2,168,362 parameters in float32, 40 devices a round, each with 50 images of 3x32x32
drawn from a seeded generator; a device trains one epoch of 5 batches of 10 with plain SGD. One worker process per core, one torch thread
in each. No side evaluates, and none reads from disk.

    floor            the bare loop: the global weights are copied into the model that stays in the process, 5 steps; nothing is sent, and
                     processes wait for each other only at the start. No engine can be faster.
    flower           Flower's Ray engine with a ClientApp and FedAvg as its quickstart writes them: a new model per message, ArrayRecords
                     both ways
    ours-quickstart  the same two apps, unchanged, on our engine
    ours-dense       an app for speed on our engine: the model stays, weights travel as one buffer; summed in float64, in device order
    pfl              pfl-research's FederatedAveraging under torchrun: one process per core, nothing is serialised, sums are
                     all-reduced (float32)
    sparcl-floor     the bare loop with the model that our `cnn` backbone has at about that size
    sparcl-dense     our apps on our engine with that model: no sparsity, no replay, fp32 both ways; bytes are encoded, checked and booked
    sparcl-0.90      the same at sparsity 0.90 with adapting masks, gradient masks, the default wire, and the sparse kernels
    derpp-dense      sparcl-dense with DER++: a buffer of 50 samples, two draws of 10 beside every batch; the next one's reference
    derpp-0.90       sparcl-0.90 with the same DER++

A round lasts from the moment the server begins to write its messages until the new global model is there. The first round is not
counted (it starts processes and allocators); the rate is devices over the mean of the others. Every repeat is a new process, and
repeats go round robin over the sides, so that a machine that slows down meets all of them. Shown is the median of the repeats, with their
range, and the median of the ratios to the floor of the same repeat. `first reply`: seconds from the start of the engine, with
everything imported in the driver, until one device has replied; `flower` notices after up to 0.1 s.

Messages (`messages`): an app that sends back what it was sent; 40 messages a round, the replies summed in float64 in device order.
The figure is wall time per message, so with several workers it is less than a message's way. `bare Ray` is two lines of Ray: the payload
put into the store once a round, NumPy arrays back.

pfl is an optional extra, `pip install -e '.[peers]'`, which leaves torch as it is and downgrades attrs; or in an environment of its
own beside ours, given as `--pfl-python` or in PFL_PYTHON:

    python -m venv /tmp/pflenv
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/pflenv/lib/python3.11/site-packages/torch.pth
    /tmp/pflenv/bin/python -m pip install 'pfl>=0.6,<0.7'
    python -m benchmarks.engine --pfl-python /tmp/pflenv/bin/python
"""
