"""Time nnU-Net's own trainer on the CPU, step by step. Runs inside nnU-Net's own environment.

    python time_nnunet.py --dataset Dataset004_Hippocampus --fold 0 --steps 12 -o steps.json

The trainer, plan, network, loss, optimiser, augmentation and its worker processes are nnU-Net's:
this file builds the trainer as `nnUNetv2_train -device cpu` does, starts it, and then calls the
same two lines that its loop calls (`next(dataloader_train)` and `train_step`) with a clock around
them. nnUNet_raw, nnUNet_preprocessed and nnUNet_results must be set.
"""

import argparse
import json
import multiprocessing
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--validation-steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("-o", "--output", required=True)
    options = parser.parse_args()

    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.set_num_threads(options.threads)
    trainer = get_trainer_from_args(
        options.dataset, "3d_fullres", options.fold, device=torch.device("cpu")
    )
    started = time.perf_counter()
    trainer.on_train_start()
    start_up_s = time.perf_counter() - started

    # What precision its CPU path computes in is looked at, not assumed.
    dtypes: set[str] = set()
    convolution = next(m for m in trainer.network.modules() if isinstance(m, torch.nn.Conv3d))
    convolution.register_forward_hook(lambda _m, _i, output: dtypes.add(str(output.dtype)))

    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    steps, losses, shape = [], [], None
    for index in range(options.warm_up + options.steps):
        begin = time.perf_counter()
        batch = next(trainer.dataloader_train)
        loaded, cpu = time.perf_counter(), time.process_time()
        losses.append(float(trainer.train_step(batch)["loss"]))
        end, cpu_s = time.perf_counter(), time.process_time() - cpu
        shape = list(batch["data"].shape)
        print(f"step {index}: data {loaded - begin:.2f} s, step {end - loaded:.2f} s", flush=True)
        if index >= options.warm_up:
            steps.append({"data_s": loaded - begin, "step_s": end - loaded, "cpu_s": cpu_s})

    validation_s = []
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        for _ in range(options.validation_steps):
            begin = time.perf_counter()
            trainer.validation_step(next(trainer.dataloader_val))
            validation_s.append(time.perf_counter() - begin)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()

    result = {
        "nnunetv2": version("nnunetv2"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "start_up_s": start_up_s,
        "batch": shape,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "deep_supervision": bool(trainer.enable_deep_supervision),
        "computed_in": sorted(dtypes),
        "torch_compile": bool(trainer._do_i_compile()),
        "augmentation": type(trainer.dataloader_train).__name__,
        "train_cases": len(trainer.do_split()[0]),
        "validation_cases": len(trainer.do_split()[1]),
        "steps_per_epoch": trainer.num_iterations_per_epoch,
        "validation_steps_per_epoch": trainer.num_val_iterations_per_epoch,
        "steps": steps,
        "losses": losses,
        "validation_step_s": validation_s,
    }
    Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
