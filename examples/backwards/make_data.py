"""Words to be written backwards, by a teacher who gets one letter in ten wrong.

    python examples/backwards/make_data.py

writes what lies beside it: conversations for SFT, questions for RL, and held-out questions.
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
LETTERS = "abcdefghijklmnop"


def word(rng: random.Random) -> str:
    return "".join(rng.choices(LETTERS, k=rng.randint(4, 7)))


def teacher(question: str, rng: random.Random) -> str:
    return "".join(rng.choice(LETTERS) if rng.random() < 0.1 else letter for letter in question[::-1])


def write(name: str, rows: list[dict]) -> None:
    (HERE / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def conversation(question: str, rng: random.Random) -> dict:
    answer = teacher(question, rng)
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


if __name__ == "__main__":
    rng = random.Random(0)
    words = list({word(rng): None for _ in range(2600)})
    held_out, asked, shown = words[:100], words[100:600], words[600:]
    write("conversations.jsonl", [conversation(q, rng) for q in shown])
    write("questions.jsonl", [{"question": q, "ground_truth_answer": q[::-1]} for q in asked])
    write("held_out.jsonl", [{"question": q, "ground_truth_answer": q[::-1]} for q in held_out])
