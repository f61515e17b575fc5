# demo-markdown: what this project uses of Markdown as HTML: headings (all <h3>), paragraphs, tables, code, bold. Of links
# the words stay. A picture becomes a line "@picture", file and words, with tabs between them, for demo-page to put in.
function inline(s,    out) {
    gsub(/&/, "\\&amp;", s); gsub(/</, "\\&lt;", s); gsub(/>/, "\\&gt;", s); gsub(/"/, "\\&quot;", s)
    while (match(s, /`[^`]+`/)) {
        out = out substr(s, 1, RSTART - 1) "<code>" substr(s, RSTART + 1, RLENGTH - 2) "</code>"
        s = substr(s, RSTART + RLENGTH)
    }
    s = out s
    while (match(s, /\*\*[^*]+\*\*/))
        s = substr(s, 1, RSTART - 1) "<b>" substr(s, RSTART + 2, RLENGTH - 4) "</b>" substr(s, RSTART + RLENGTH)
    while (match(s, /\[[^]]+\]\([^)]+\)/)) { # what a link leads to is not here
        out = substr(s, RSTART + 1, RLENGTH - 1)
        sub(/\].*/, "", out)
        s = substr(s, 1, RSTART - 1) out substr(s, RSTART + RLENGTH)
    }
    return s
}
function end() {
    if (in_p) print "</p>"
    if (in_table) print "</table></div>"
    in_p = in_table = 0
}
function row(line, tag,    n, cell, k) {
    gsub(/^\| ?| ?\| *$/, "", line)
    n = split(line, cell, / *\| */)
    printf "<tr>"
    for (k = 1; k <= n; k++) printf "<%s%s>%s</%s>", tag, (k > 1 ? " class=\"n\"" : ""), inline(cell[k]), tag
    print "</tr>"
}
/^```/ { end(); print in_code ? "</pre>" : "<pre>"; in_code = !in_code; next }
in_code { gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); gsub(/>/, "\\&gt;"); print; next }
/^<!--.*-->$/ { next }
/^#/ { end(); sub(/^#+ */, ""); print "<h3>" inline($0) "</h3>"; next }
/^!\[/ {
    end()
    words = file = $0
    sub(/^!\[/, "", words)
    sub(/\].*/, "", words)
    sub(/.*\(/, "", file)
    sub(/\).*/, "", file)
    print "@picture\t" file "\t" inline(words)
    next
}
/^\|[-:| ]+\|? *$/ { next }
/^\|/ {
    if (!in_table) { end(); print "<div class=\"wide\"><table>" }
    row($0, in_table ? "td" : "th")
    in_table = 1
    next
}
/^ *$/ { end(); next }
{ if (!in_p) { end(); printf "<p>" } in_p = 1; print inline($0) }
END { end(); if (in_code) print "</pre>" }
