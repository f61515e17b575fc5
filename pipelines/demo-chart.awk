# demo-chart: curves of a log of JSON lines over its steps, as SVG, which demo.css colours.
#     awk -v keys=loss,… -v what=WORDS -f demo-chart.awk LOG
# The axis begins at 0, or below where the values do. Where there are many steps, means of a fortieth of them each lie over the
# single ones. Lines without the keys, of steps that were skipped, count for nothing.
function number(key,    at, rest) {
    at = index($0, "\"" key "\":")
    rest = substr($0, at + length(key) + 3)
    return at && match(rest, /^-?[0-9][-+.0-9eE]*/) ? substr(rest, 1, RLENGTH) : ""
}
function px(s) { return left + (n > 1 ? (s - step[1]) / (step[n] - step[1]) : 0.5) * (right - left) }
function py(v) { return bottom - (v - low) / (high - low) * (bottom - top) }
function nice(x,    ten) { # the least of 1, 2, 5 times a power of ten that is no less
    ten = 10 ^ int(log(x) / log(10) - (x < 1))
    return x <= ten ? ten : x <= 2 * ten ? 2 * ten : x <= 5 * ten ? 5 * ten : 10 * ten
}
function scale(    k, i) {
    for (k = 1; k <= keyed; k++)
        for (i = 1; i <= n; i++) {
            if (value[k, i] > high) high = value[k, i]
            if (value[k, i] < low) low = value[k, i]
        }
    if (high <= low) high = low + 1
    tick = nice((high - low) / 4)
    low = tick * (low < 0 ? int(low / tick) - 1 : 0)
    high = tick * (int(high / tick) + (high > tick * int(high / tick)))
}
function axes(    t, apart) {
    for (t = low; t <= high + tick / 2; t += tick) {
        printf "<path class=\"grid\" d=\"M%d %.1fH%d\"/>", left, py(t), right
        printf "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>\n", left - 7, py(t) + 4, t
    }
    apart = nice(step[n] > 8 ? step[n] / 8 : 1)
    for (t = apart; t <= step[n]; t += apart)
        if (t >= step[1]) printf "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n", px(t), bottom + 17, t
    printf "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text>\n", (left + right) / 2, bottom + 32
}
# Means of so many values; where the curve ends.
function curve(k, wide, class,    line, i, j, sum, count, at) {
    for (i = 1; i <= n; i += wide) {
        sum = count = at = 0
        for (j = i; j < i + wide && j <= n; j++) { sum += value[k, j]; at += step[j]; count++ }
        line = line sprintf("%.1f,%.1f ", px(at / count), py(sum / count))
    }
    printf "<polyline class=\"%s s%d\" points=\"%s\"/>\n", class, k, line
    return py(sum / count)
}

BEGIN { keyed = split(keys, key, ","); left = 44; right = 610; top = 12; bottom = 172 }
{
    for (k = 1; k <= keyed; k++) {
        got = number(key[k])
        if (got == "") next
        value[k, n + 1] = got + 0
    }
    step[++n] = number("step") + 0
}
END {
    if (!n) exit 1
    scale()
    printf "<svg class=\"chart\" viewBox=\"0 0 720 208\" role=\"img\" aria-label=\"%s over %d steps\">\n", what, step[n]
    axes()
    wide = int(n / 40)
    for (k = 1; k <= keyed; k++) {
        end[k] = curve(k, 1, wide > 1 ? "raw" : "mean")
        if (wide > 1) end[k] = curve(k, wide, "mean")
        if (k > 1 && end[k] < end[1] + 14 && end[k] > end[1] - 14) end[k] = end[1] + (end[k] < end[1] ? -14 : 14)
        printf "<text class=\"s%d\" x=\"%d\" y=\"%.1f\">%s</text>\n", k, right + 7, end[k] + 4, key[k]
    }
    print "</svg>"
}
