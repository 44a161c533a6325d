"""Pretraining of a tiny base: what it reads as rows, the loss on held-out rows, resuming, `base.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM, Trainer, TrainingArguments

from searchr3.dataset.splits import fraction
from searchr3.errors import DataError, SearchR3Error
from searchr3.files import new_folder, write_json
from searchr3.training.base_facts import FACTS
from searchr3.training.base_model import (
    LEAST_VOCABULARY,
    SIZES,
    SPARE_ROWS,
    VOCABULARY,
    Shape,
    make_tokenizer,
    tiny_config,
)
from searchr3.training.base_rows import (
    CONTEXT,
    PackedRows,
    all_shares,
    divided,
    pack,
    pack_talks,
    schedule,
)
from searchr3.training.base_sources import Source, kept_apart
from searchr3.training.base_start import Start
from searchr3.training.checkpoints import WholeCheckpoints, last_checkpoint, resume_point
from searchr3.training.precision import computes_bf16

DEV_ROWS = 128  # of each part, at most
SAVE_EVERY = 100  # steps
_EVERY = 200  # steps between two looks at the held-out rows


@dataclass(frozen=True)
class Settings:
    """How a base is made. The defaults, on installed Python code, are the bundled base's.

    Attributes:
        tokens: in one optimizer step, in rows of 256.
        vocabulary: rows of the embedding, 16 spare ones included.
        chat_share: of the texts that are shown as a conversation, beginning and rest.
        dev_share: of the texts and conversations that are held out to measure the loss on.
        shares: of the training rows, for some parts; with none all rows come equally often. A part is a
            source's texts (`NAME`) or its conversations (`NAME-pairs`).
    """

    steps: int = 2400
    tokens: int = 8192
    vocabulary: int = VOCABULARY
    shape: Shape = SIZES["5m"]
    learning_rate: float = 2e-3
    chat_share: float = 0.1
    dev_share: float = 0.0
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.tokens < CONTEXT:
            raise SearchR3Error(f"a base takes 1 step or more, of {CONTEXT} tokens or more")
        if self.vocabulary < LEAST_VOCABULARY:
            raise SearchR3Error(f"a vocabulary of {self.vocabulary} is too small; {LEAST_VOCABULARY} or more")
        if not (0 <= self.chat_share <= 1 and 0 <= self.dev_share < 1 and self.learning_rate > 0):
            raise SearchR3Error("shares lie from 0 to 1, a learning rate is above 0")
        if any(share <= 0 for share in self.shares.values()) or sum(self.shares.values()) > 1:
            raise SearchR3Error("the shares of parts are above 0 and at most 1 together")

    @property
    def batch_size(self) -> int:
        """Rows in one optimizer step."""
        return self.tokens // CONTEXT


class BaseTrainer(WholeCheckpoints, Trainer):
    """Trains on rows in a random order, or, where it was planned, in that of the data set."""

    planned = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        if self.planned:
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(*args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        rows = self.eval_dataset[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        return self.accelerator.prepare(DataLoader(rows, batch_size=8))  # also the last rows, which are few


def make_base(
    sources: Sequence[Source],
    output: str | Path,
    settings: Settings = Settings(),
    resume: bool = False,
    start: Start | None = None,
) -> Path:
    """Make tokenizer and model from `sources` and save both to `output`, in bfloat16, with `base.json`.

    Checkpoints lie beside `output`, with the suffix `.checkpoints`; `resume` continues from the last one and
    ends with the same weights as if nothing had interrupted it. Only `steps` may have changed.

    Args:
        start: a base to go on from, weights and tokenizer; the learning rate warms up and decays anew.

    Raises:
        DataError: the texts do not fill one batch, or a share is of no part.
        SearchR3Error: there are checkpoints and `resume` is not asked for, or they are of another base;
            `start` is of another shape.
    """
    output = Path(output)
    if start and (start.shape, start.vocabulary) != (settings.shape, settings.vocabulary):
        raise SearchR3Error(
            f"{start.folder}: a base keeps its shape and vocabulary; leave out --size, --width, --layers, "
            "--heads and --vocabulary"
        )
    folder = output.with_suffix(".checkpoints")
    if not resume and last_checkpoint(folder):
        raise SearchR3Error(
            f"{folder}: holds a base in the making; go on with --resume, or remove the folder"
        )
    sources = kept_apart(sources)
    tokenizer, train, dev = _prepare(sources, settings, start)
    sizes = {name: len(rows) for name, rows in train.items()}
    if sum(sizes.values()) < settings.batch_size:
        raise DataError(
            f"too few texts: {sum(sizes.values())} rows of {CONTEXT} tokens do not fill a batch of "
            f"{settings.batch_size}"
        )
    shares = _shares(sizes, settings)
    torch.manual_seed(settings.seed)
    if start:
        model = start.model()
    else:
        model = Qwen3ForCausalLM(tiny_config(tokenizer, settings.vocabulary, settings.shape))
    rows = torch.cat([*train.values()])
    facts = _facts(sources, settings, sizes, shares, rows, model, start)
    _admit(folder, facts, resume)
    print(
        f"{sum(len(one.texts) for one in sources)} texts, {sum(len(one.talks) for one in sources)} "
        f"conversations, {rows.numel() / 1e6:.1f}M tokens, {model.num_parameters() / 1e6:.2f}M parameters",
        flush=True,
    )
    dataset: Dataset = PackedRows(rows)
    if shares:
        plan = schedule(sizes, shares, settings.steps * settings.batch_size, settings.seed)
        dataset = Subset(dataset, plan.tolist())
    trainer = BaseTrainer(
        model=model,
        args=_arguments(folder, settings, bool(dev)),
        train_dataset=dataset,
        eval_dataset={name: PackedRows(rows) for name, rows in dev.items()} or None,
        processing_class=tokenizer,
    )
    trainer.planned = bool(shares)
    trainer.train(resume_from_checkpoint=resume_point(folder) if resume else None)
    if dev and settings.steps % _EVERY:
        trainer.evaluate()
    facts["losses"] = _losses(trainer.state.log_history)
    with new_folder(output, overwrite=True) as place:
        model.to(torch.bfloat16).save_pretrained(place)
        tokenizer.save_pretrained(place)
        write_json(place / FACTS, facts)
    return output


def _prepare(
    sources: Sequence[Source], settings: Settings, start: Start | None
) -> tuple[PreTrainedTokenizerFast, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tokenizer, that of `start` or a new one, and the rows of each part: to train on, and held out."""
    names = [one.name for one in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two sources are called {twice!r}; rename the folder or the file of one")

    def is_dev(text: str) -> bool:  # a text and the conversation that ends with it fall alike
        return fraction(text, "base") < settings.dev_share

    texts = {one.name: divided(one.texts, is_dev) for one in sources}
    talks = {f"{one.name}-pairs": divided(one.talks, is_dev) for one in sources}
    if start:
        tokenizer = start.tokenizer()
    else:
        read = (text for kept, _ in texts.values() for text in kept)
        said = (turn for kept, _ in talks.values() for talk in kept for _, turn in talk)
        tokenizer = make_tokenizer(chain(read, said), settings.vocabulary - SPARE_ROWS)
    train, dev = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, (kept, held_out) in texts.items():
        train[name] = pack(kept, tokenizer, chat_share=settings.chat_share, seed=settings.seed)
        dev[name] = pack(held_out, tokenizer, chat_share=0.0, seed=settings.seed)[:DEV_ROWS]
    for name, (kept, held_out) in talks.items():
        train[name] = pack_talks(kept, tokenizer, seed=settings.seed)
        dev[name] = pack_talks(held_out, tokenizer, seed=settings.seed)[:DEV_ROWS]
    return tokenizer, *({name: rows for name, rows in part.items() if len(rows)} for part in (train, dev))


def _shares(sizes: Mapping[str, int], settings: Settings) -> dict[str, float]:
    """The share of each part; empty where none is wanted."""
    if unknown := next((name for name in settings.shares if name not in sizes), None):
        raise DataError(
            f"a share for {unknown!r}, but there is no such part, or it is empty: {', '.join(sizes)}"
        )
    if not settings.shares:
        return {}
    if len(settings.shares) < len(sizes) and sum(settings.shares.values()) >= 1:
        rest = ", ".join(name for name in sizes if name not in settings.shares)
        raise DataError(f"the shares leave nothing to {rest}; make them less, or leave these out")
    return all_shares(sizes, settings.shares)


def _facts(
    sources: Sequence[Source],
    settings: Settings,
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    rows: torch.Tensor,
    model: Qwen3ForCausalLM,
    start: Start | None,
) -> dict[str, Any]:
    """What `base.json` says; all but `steps` must hold when training goes on.

    Its sources are all that the weights have seen, those of `start` last.
    """
    counts = [{"texts": len(one.texts), "talks": len(one.talks)} for one in sources]
    own = [{"name": one.name, **one.facts, **n} for one, n in zip(sources, counts, strict=True)]
    return {
        "sources": own + (start.sources if start else []),
        "rows": dict(sizes),
        "shares": dict(shares),
        "read": hashlib.blake2b(rows.numpy().data, digest_size=16).hexdigest(),
        "parameters": model.num_parameters(),
        "settings": asdict(settings),
        **({"from": start.facts} if start else {}),
    }


def _admit(folder: Path, facts: dict[str, Any], resume: bool) -> None:
    """Let a base go on only as it began."""
    place = folder / FACTS
    if resume and place.is_file() and last_checkpoint(folder):
        before = _flat(json.loads(place.read_text(encoding="utf-8")))
        differs = {key for key, _ in before.items() ^ _flat(facts).items()}
        if changed := sorted(differs - {"settings.steps"}):
            raise SearchR3Error(
                f"{folder}: the base in the making differs in {', '.join(changed)}; go on with what it began "
                "with, or remove the folder"
            )
    write_json(place, facts)


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts by dotted name, settings one by one, all else as it is written."""
    settings = {f"settings.{name}": json.dumps(value) for name, value in facts["settings"].items()}
    return settings | {name: json.dumps(value) for name, value in facts.items() if name != "settings"}


def _arguments(folder: Path, settings: Settings, measured: bool) -> TrainingArguments:
    steps = settings.steps
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": max(1, steps // 4)},
        warmup_steps=min(100, steps // 10),
        weight_decay=0.1,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=computes_bf16(),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        eval_strategy="steps" if measured else "no",
        eval_steps=_EVERY,
        prediction_loss_only=True,
        dataloader_drop_last=True,
        save_steps=SAVE_EVERY,
        save_total_limit=2,
        seed=settings.seed,
        report_to=[],
        disable_tqdm=True,
    )


def _losses(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The losses on held-out rows, in nats a token: `{"step", PART: loss, …}`."""
    found: dict[int, dict[str, float]] = {}
    for entry in history:
        for key, value in entry.items():
            if key.startswith("eval_") and key.endswith("_loss"):
                name = key.removeprefix("eval_").removesuffix("_loss")
                found.setdefault(int(entry["step"]), {})[name] = value
    return [{"step": step, **found[step]} for step in sorted(found)]
