"""The sections of the page of results: where each comes from, its title, what it says, its tables."""

from __future__ import annotations

from collections.abc import Callable

from tables import (
    PROCESSOR,
    Results,
    advice,
    against_jinns,
    architectures,
    by_method,
    cut_off_race,
    growth,
    nested_iteration,
    one_rate,
    peer_race,
    pinnacle,
    plain,
    races,
    races_by_grid,
    rounding,
    sample_cost,
    tables_of,
)

SECTIONS: list[tuple[str, str, str, Callable[[Results], str]]] = [
    (
        "pinn_poisson",
        "Poisson PINN",
        "The page's problem, tanh networks of two and three hidden layers, Adam. Smaller networks get "
        "fewer points.",
        races,
    ),
    (
        "pinn_helmholtz",
        "Helmholtz PINN",
        "k = 4 pi, a smooth part and a wave of half-period 1/4; sums of three bands of sines, Adam. "
        "Tanh networks with the problem's own boundary weight learn nothing in this time.",
        races,
    ),
    (
        "operator_burgers",
        "Burgers operator",
        "Viscosity 0.1, 512 samples, grids from 64 to 512 points. The samples were solved with an "
        "earlier solver in time steps, exact to about 1e-8.",
        races,
    ),
    (
        "operator_burgers-fronts",
        "Burgers operator with fronts",
        "The same with viscosity 0.01, whose fronts coarse grids hardly represent; the samples are "
        "from the earlier solver, too.",
        races,
    ),
    (
        "operator_darcy",
        "Darcy operator on 128 x 128",
        "Binary permeability, 1000 samples of the package's finite-volume solver, random symmetries of "
        "the square for both sides, grids from 32 x 32 to 128 x 128.",
        races,
    ),
    (
        "grid_growth",
        "Darcy operator on growing grids",
        "Every cell of the finest grid has one of three permeabilities, drawn independently; how "
        "probable each one is varies smoothly. 500 samples of the package's finite-volume solver, "
        "random symmetries of the square for both sides. A network may be used on any grid that "
        "carries its modes.",
        races_by_grid,
    ),
    (
        "grid_growth_cut_off",
        "Darcy operator on growing grids, runs that were cut off",
        "The same on larger grids, two budgets. On a processor all seeds of the low target were run "
        "before the time ended: on 128 x 128 cells the cascade is sooner than the best single network, "
        "so that the ratio goes on growing with the grid. On a GPU, in two and in three dimensions "
        "(seconds on the wall, programs kept between runs), the network on the finest grid alone ends "
        "lowest at equal seconds: an accelerator is not busy with the coarse grids, whose steps cost "
        "far more than their share of the cells: a cascade saves little and gives up fine steps.",
        cut_off_race,
    ),
    (
        "darcy_small",
        "Darcy operator on 16 x 16, with neuraloperator",
        "The peer's own small data set; the peer with the settings of its example for its incremental "
        "trainer, until its best test error. Our sides train on nine tenths of the samples and tune on "
        "the rest; the peer trains on all.",
        peer_race,
    ),
    (
        "architectures",
        "Models of users",
        "A U-Net, an operator of Galerkin attention and a DeepONet, plain Flax NNX, written without a "
        "thought of levels (`benchmarks/models_of_users.py`); all transfers are inferred. The finest "
        "model alone against a cascade in the same processor seconds, compilation, transfers and their "
        "verification included; what a plan spends on these was measured first, and its levels share "
        "the rest. On the tuning seed, with half the seconds, the finest model alone has three rates; "
        "two plans of a cascade start from the best of these rates: fewer features on the same grid, "
        "and fewer features on half the grid points (for the DeepONet, whose sensors are fixed, three "
        "widths). The better plan is then run on three seeds, with all the seconds and with half of "
        "them. A cascade that never has an error counts as zero. Seconds are what the plan was found to "
        "cost on the tuning seed, so that they differ by the noise of a machine that other programs "
        "used as well; a first run of the U-Net on Darcy, where this was a fifth, was repeated. Times "
        "to higher errors were added after first results had been seen, with the factors of a race. "
        "Three seeds only, since runs are long.",
        architectures,
    ),
    (
        "sample_cost",
        "Samples that cost more than training",
        "The state of a gas after shocks have formed, from its initial velocity; networks on 128 "
        "cells. One network on samples of one solver, the best choice of solver (128 to 1024 cells) "
        "and number of samples, against the same network on samples of cheap solvers that were "
        "corrected with few dear ones; how many of each is tuned like the rival's number of samples, "
        "or proposed for a budget, and then comparing the solvers is counted. Clocks include solving, "
        "corrections, training and compilation, to a fixed error on solutions with 2048 cells. The "
        "rules are those of a race, with one more: on the tuning seed an entry must end with a "
        "reserve below the target. A rival that misses the target on another seed counts as if it had "
        "reached it at the end of its run. Solved samples are the same for all seeds. Goal: 5 times "
        "sooner. The second table shows where the seconds go. The goal is missed since the target is "
        "close to what the dear samples themselves allow: the cheap ones have to be mended nearly to "
        "that, which takes hundreds of pairs instead of tens, and training and its compilation cost "
        "both sides the same. At the high target the samples of a cheap solver nearly do alone, and the "
        "reserve keeps a shorter run of the rival out (first rows of the last table). The reserve was "
        "chosen after a first run, in which an entry of ours with a smaller one had missed the target "
        "on the test data of seed 0, where errors are larger than on the validation data.",
        sample_cost,
    ),
    (
        "sample_cost_square",
        "Samples that cost more than training, in two dimensions",
        "The same for a gas in two dimensions, whose solver costs eight times as much with half the "
        "width of the cells; networks on 32 x 32, solvers on 32, 64 and 128 cells per side, to a fixed "
        "error on solutions with 256. The width of the networks was raised, for both sides, after "
        "first trials of both, and longer entries were added for both after shorter ones had been seen. "
        "Three seeds so far. While it ran, other programs used the second core, which makes solving "
        "and training alike up to half as slow again. The goal of 5 is missed here, too: the error of "
        "the network itself, which costs both sides the same training, leaves little room for that of "
        "the correction, so that the cheapest solver is of no use, and the middle one takes most of "
        "the seconds.",
        sample_cost,
    ),
    (
        "advice",
        "Advice",
        "What `recommend_schedule` proposes for the problems of the races, asked for an error (the "
        "target) within the budget of the race, against a grid of single networks and cascades: "
        "seconds to the target of the entry with the proposed sizes over those of the best one, on "
        "validation data; processor seconds of asking over the budget. The grid of Darcy on 128 x 128 "
        "is the tuning of its race, where the time of an entry is that of its end. The rule was made "
        "after the results of the tuning had been seen. Goal: at most 1.5, for at most 5 %.",
        advice,
    ),
    (
        "overhead",
        "Overhead of the loop",
        "Against a bare hand-written `jit(scan)`. Goal: at most 1.05.",
        plain(),
    ),
    (
        "overhead_gpu",
        "Overhead of the loop on a GPU",
        "The same on an accelerator, where steps take a tenth of a millisecond, so that one more "
        "exchange between host and device in every step shows. The goal is missed there, presumably "
        "since our loop may end early, after a loss that is not finite, and the host has to read that "
        "condition, which a `scan` does not have. The difference is about the same for all three "
        "networks.",
        plain(),
    ),
    (
        "checkpoint_cost",
        "What checkpoints cost",
        "Processor seconds of a training with a save every second over those without, by the number of "
        "saves; the thread that writes is counted. Goal: at most 2 % at one save every 30 seconds.",
        plain(),
    ),
    (
        "streaming",
        "Data in a file",
        "Fields on 64 x 64 points, training a Fourier operator: arrays in memory, of which the device "
        "draws batches, against a shuffled dataset of the file. *Throughput*: steps a second, waiting "
        "for batches included, medians of rounds that take turns; goal 0.9 where a step takes 5 ms. "
        "*Memory*: the largest of a process of its own, while the file grows 100 times.",
        tables_of("speed", "memory"),
    ),
    (
        "kills",
        "Killed processes",
        "Processes that train small hierarchies and save whenever they can, killed at random times or "
        "soon after a random number of checkpoints, and started again until the run is complete. "
        "*Different*: parts of complete runs (parameters, optimizer state, losses, evaluations, ...) "
        "that are not those of a run that was left alone, bit for bit.",
        plain("strategy", "kills", "runs", "before the first checkpoint", "different"),
    ),
    (
        "compile_cost",
        "What the first training of a process pays for its programs",
        "Fresh processes, with an empty and with a filled folder of programs; training a second time in "
        "the same process makes no programs. The ratio is the second time's seconds over the first's. "
        "Goal: 0.9 with a filled folder. Tracing and lowering are not kept in the folder.",
        plain(),
    ),
    (
        "namesake",
        "Against the namesake on PyPI",
        "Its documented loop, whose steps are not compiled, against `fit`, whose steps are: the ratio "
        "is mostly that of compiled to uncompiled code. Both sides take turns on a core that other "
        "programs used as well.",
        plain(),
    ),
    (
        "laplacian",
        "Laplacian",
        "A compiled PINN step of a 3 x 128 tanh network on 1000 points. Goal: at least twice as fast "
        "as the trace of `jax.hessian`.",
        plain(),
    ),
    (
        "transfer_choices",
        "Transitions",
        "Prolongation and optimizer state on the page's Poisson problem, Adam 1e-3, 400 + 600 + 1000 "
        "steps. Jumps and peaks are relative to the loss before the transition.",
        plain(
            "choice",
            "largest jump",
            "largest peak",
            "median final loss",
            "median final error",
        ),
    ),
    (
        "plasticity",
        "Starts of a finer level",
        "What the fine level starts from: the coarse function (`preserving`), a share of the fine "
        "network's values in the outgoing weights of new units, or new units chosen by ascent of the "
        "gradient that their outgoing weights see. Levenberg-Marquardt on a Helmholtz problem in "
        "float64, and Adam on Poisson; equal numbers of steps, no times.",
        plain("method", "start", "median loss", "median error", "largest error"),
    ),
    (
        "one_rate",
        "One learning rate for all levels",
        "Cascades of three levels at constant rates: `plain` Adam, whose entries count their own steps, "
        "against Adam whose rates also fall with the width and whose new entries warm up (`scaled`). "
        "Peaks: the largest loss of the 200 steps after a transition over the last one before it, of "
        "all seeds and both transitions; over the typical loss before it; and where the coarse level "
        "goes on instead. Then final losses of single networks against the rate, with the factor of the "
        "width from the start and without.",
        one_rate,
    ),
    (
        "second_order",
        "Second-order smoothers",
        "PINNs in float64, one core. Poisson is the page's; Burgers' has viscosity 0.01/pi; all but "
        "Poisson use the problem's trial function, for every method. `lm` is Levenberg-Marquardt. All "
        "methods get the processor seconds of `lm-cascade`; wall times are not shown, since other "
        "programs shared the core. The rows of three seeds (natural gradient, matrix-free, block "
        "cycles) are older: they were measured before the solvers worked in blocks and before the "
        "reference of Allen-Cahn was exact (it was wrong by 1e-5), within the seconds of `lm-cascade` "
        "of then.",
        lambda results: by_method(results, PROCESSOR),
    ),
    (
        "rivals",
        "Rivals of second order",
        "Other methods on the same problems, evaluation grid and machine, tuned on another seed by the "
        "validation loss, within the processor seconds of `lm-alone`. Random features solve a linear "
        "problem once, with the problem's trial function; they have points and features of their own.",
        lambda results: by_method(results, PROCESSOR),
    ),
    (
        "rounding",
        "PINNs to rounding",
        "The method of ours that suits each problem, float64, no point placed by hand. Random features "
        "are sines; the solutions of the linear problems here are made of waves, which favours them. "
        "Time slabs have the elements and tolerances of trials on seed 0. `within` is the time that the "
        "goal allows, in seconds; quartiles are over the seeds. Published for the same problems: "
        "Burgers 0.01 8e-14, KdV 8e-11, Kuramoto-Sivashinsky 5e-7 (a sketched Gauss-Newton method, "
        "arXiv:2607.02194, 6 to 90 minutes on an H100); Burgers 0.01/pi 1.6e-8 in 2900 s, Allen-Cahn "
        "9.4e-7 (self-scaled Broyden); networks throughout. Kuramoto-Sivashinsky ran on two seeds and "
        "misses its goal, as do the last three rows, networks.",
        rounding,
    ),
    (
        "pinnacle",
        "PINNacle",
        "Cases of a published suite (arXiv:2306.08827), relative L2 errors on three seeds beside the "
        "lowest mean error that the paper reports for any of its methods, which trained for 20000 "
        "steps on a GPU (its table 3, from a public summary). One rule chooses the model and its "
        "settings for all cases, on another seed, without the solution; it grew while the table was "
        "made: Poisson2d-CG and Wave1d-C were chosen before slopes times sixteen were tried, PNd before "
        "networks drew new points; nonlinear evolution equations in one space dimension are marched in "
        "time slabs since the last change. References are analytic or were computed by other solvers "
        "(`benchmarks/references/`), more than a hundred times more exact than what they judge. Where "
        "measurements are noisy (PInv, HInv) a network is chosen by measurements that are held out; its "
        "numbers of steps come from trials that saw the errors of the seeds zero to two, so that the "
        "table has others. Where we gain little: these two; "
        "Poisson2d-MS, whose coefficients jump where no patch ends; NS2d-C, whose corners are singular. "
        "NS2d-C and KS ran on one seed, KS above the five minutes that were the goal. Not in the table: "
        "NS2d-CG, whose choice was not run to its end; cases whose data were not to be had "
        "(Burgers2d-C, Poisson3d-CG, Heat2d-VC, NS2d-LT, Wave2d-CG), whose reference does not solve "
        "their equation (Wave2d-MS), that lack boundary conditions (GS), or that need slabs in time "
        "with two space dimensions (Heat2d-LT, Heat2d-CG).",
        pinnacle,
    ),
    (
        "nested_iteration",
        "Nested iteration with random features",
        "Nonlinear equations, coarse features first against one set of features of any number, tuned on "
        "another seed; seconds to a relative error of 1e-8. The solutions are manufactured from waves, "
        "which favours sines on both sides.",
        nested_iteration,
    ),
    (
        "subspace",
        "Large networks in random subspaces",
        "Helmholtz's equation with its trial function, three equal layers, equal processor seconds. "
        "`moved`: parameters that a step moves. Subspaces train what dense steps cannot in this time "
        "and stay behind dense steps on a network that is small enough for them.",
        plain(
            "width", "parameters", "moved", "seed", "error", "loss", "steps", "processor seconds"
        ),
    ),
    (
        "jinns",
        "Second order against jinns",
        "`jinns` with the settings of its Burgers notebook (natural gradient), the only one of these "
        "problems that it documents: with its weights of 1, with ours, and with our trial functions, "
        "widths and points, so that only its optimizer and its loop are left. Ours, in the tables "
        "above, holds conditions by construction. Allen-Cahn with our weights ran on two seeds and "
        "with trial functions on three, for want of time.",
        against_jinns,
    ),
    (
        "multistage_fit",
        "Residual correction",
        "Fit of a smooth function in stages, float64. Goal: at most 1e-12 in at most four stages.",
        plain("seed", "error after each stage", "held-out error", "seconds with compilation"),
    ),
    (
        "cycles",
        "Cycles",
        "V-cycle, W-cycle, full multigrid against cascade and finest alone at equal work.",
        plain(),
    ),
    (
        "import_time",
        "Time to import",
        "Processor seconds of a fresh interpreter up to the end of an import, medians, beside those of "
        "the libraries that are needed anyway. Goal: a ratio of at most 1.3.",
        plain(),
    ),
    ("cost_growth", "How cost grows", "Seconds and memory of one step.", growth),
]

OLD_CORE = "Measured with an earlier state of the training core; not repeated since."
STALE = {
    "cycles": OLD_CORE,
}
"""What a reader has to know of results that are not of the present state."""
