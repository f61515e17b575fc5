#!/usr/bin/env python3
"""Prints the tables of tests/unit/linear.c, as NumPy computes them: ridge regression by least squares over the rows with
the penalty's appended, principal components by eigh.

usage: tests/golden/linear.py > tests/unit/linear_table.h
"""
import numpy as np

ROWS, IN, OUT = 40, 6, 2
k, i, o = np.arange(ROWS)[:, None], np.arange(IN), np.arange(OUT)
x = np.sin(3 * k + 0.7 * i * k + i) * (1 + i) + i
x[:, 3] = 2.5  # does not vary
x[:, 5] = x[:, 0] + 2 * x[:, 1]  # says nothing new
y = np.cos(0.4 * k + o) + 0.3 * x[:, :2] + 5 * o


def fit(rows, strength):
    a, b = x[rows], y[rows]
    mean, deviation, bias = a.mean(0), a.std(0), b.mean(0)
    scale = np.where(deviation > 1e-9, 1 / np.maximum(deviation, 1e-9), 0)
    more = np.concatenate([(a - mean) * scale, np.sqrt(len(a) * strength) * np.eye(IN)])
    weight = np.linalg.lstsq(more, np.concatenate([b - bias, np.zeros((IN, OUT))]), rcond=None)[0]
    return weight.T, lambda at: bias + ((x[at] - mean) * scale) @ weight


def choose():
    held = np.arange(ROWS) % 5 == 4
    powers = np.arange(-5, 3)
    return 10.0 ** powers[np.argmin([((y[held] - fit(~held, 10.0 ** p)[1](held)) ** 2).sum() for p in powers])]


def table(name, values):
    print(f"static const double {name}[] = {{")
    values = np.ravel(values)
    for at in range(0, len(values), 4):
        print("    " + " ".join(f"{v!r}," for v in values[at:at + 4].tolist()))
    print("};")


def main():
    print("/* Made by tests/golden/linear.py. */")
    everything = np.ones(ROWS, bool)
    for name, strength in ("weak", 1e-3), ("strong", 3.0):
        weight, predict = fit(everything, strength)
        table(f"weight_{name}", weight)
        table(f"guess_{name}", predict(everything)[7])
    table("chosen", [choose()])
    values, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    axes = axes.T[::-1][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])[:, None]
    table("axis", axes)
    table("deviation", np.sqrt(values[::-1][:3]))
    table("mean", x.mean(0))


if __name__ == "__main__":
    main()
