//! Templates that are long or nest deeply in one construct: what a parser may recurse over, or scan again and again.

use super::Case;

/// What is repeated on the way in and on the way out, with a beginning, a middle and an end.
type Chain = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// Chains in an expression that do not nest in the source.
const FLAT: &[&str] = &[
    ".a",
    "[0]",
    "['a']",
    "()",
    "(1)",
    "(a=1)",
    "|upper",
    "|default(1)",
    "|map('upper')",
    " + 1",
    " - 1",
    " * 1",
    " / 1",
    " // 1",
    " % 1",
    " ** 1",
    " ** -1",
    " ** 0",
    " ~ 1",
    " ~ x",
    " and 1",
    " and x",
    " or 1",
    " or x",
    " == 1",
    " != 1",
    " < 1",
    " <= x",
    " in x",
    " not in x",
    " in [1]",
    " is defined",
    " is not none",
    " is eq 1",
    " is divisibleby 3",
    " if 1",
    " if x else 1",
    " if 0 else 1",
    "[::]",
    "[1:]",
    "[:-1]",
    "[::-1]",
    ".a.b()",
    ".a|f",
    "|f(x)",
    "(*x)",
    "(**x)",
    " 'a'",
    ".0",
    ", 1",
    " + -1",
    " and not 1",
    " if x",
    " is not defined and 1",
    "|batch(2)",
    "|e",
    "|string",
    "|list",
    ".append(x)",
    ".x[0](1)|upper",
    " == x == x",
];

const NESTED: &[Chain] = &[
    ("{{ ", "not ", "x", "", " }}"),
    ("{{ ", "-", "1", "", " }}"),
    ("{{ ", "+", "1", "", " }}"),
    ("{{ ", "- ", "x", "", " }}"),
    ("{{ ", "-+", "1.5", "", " }}"),
    ("{{ ", "not -", "1", "", " }}"),
    ("{{ ", "(", "1", ")", " }}"),
    ("{{ ", "((", "1", "))", " }}"),
    ("{{ ", "[", "", "]", " }}"),
    ("{{ ", "[1, ", "", "]", " }}"),
    ("{{ ", "(1, ", "2", ")", " }}"),
    ("{{ ", "{1: ", "1", "}", " }}"),
    ("{{ ", "{'a': [", "1", "]}", " }}"),
    ("{{ ", "{x: {", "}", "}}", " }}"),
    ("{{ ", "x[", "0", "]", " }}"),
    ("{{ ", "x[1:", "0", "]", " }}"),
    ("{{ ", "x[::", "1", "]", " }}"),
    ("{{ ", "x(", "0", ")", " }}"),
    ("{{ ", "x(a=", "0", ")", " }}"),
    ("{{ ", "x(*", "y", ")", " }}"),
    ("{{ ", "x(**", "y", ")", " }}"),
    ("{{ ", "x.y(", "0", ")", " }}"),
    ("{{ ", "x|f(", "0", ")", " }}"),
    ("{{ ", "x|default(", "0", ")", " }}"),
    ("{{ ", "x is eq(", "0", ")", " }}"),
    ("{{ ", "x is eq ", "0", "", " }}"),
    ("{{ ", "x if ", "1", "", " }}"),
    ("{{ ", "x if 1 else ", "1", "", " }}"),
    ("{{ ", "x if 0 else (", "1", ")", " }}"),
    ("{{ ", "(x if ", "1", " else 2)", " }}"),
    ("{{ ", "1 + (", "1", ")", " }}"),
    ("{{ ", "1 ~ (", "1", ")", " }}"),
    ("{{ ", "1 and (", "1", ")", " }}"),
    ("{{ ", "0 or (", "1", ")", " }}"),
    ("{{ ", "1 == (", "1", ")", " }}"),
    ("{{ ", "1 < (", "1", ")", " }}"),
    ("{{ ", "1 in [", "1", "]", " }}"),
    ("{{ ", "2 ** ", "1", "", " }}"),
    ("{{ ", "2 ** -", "1", "", " }}"),
    ("{{ ", "-2 ** ", "1", "", " }}"),
    ("{{ ", "not 1 in ", "x", "", " }}"),
    ("{{ ", "range(", "2", ")", " }}"),
    ("{{ ", "dict(a=", "2", ")", " }}"),
    ("{{ ", "namespace(a=", "2", ")", " }}"),
    ("{{ ", "'a'.join(", "'b'", ")", " }}"),
    ("{{ ", "[x|map('f', ", "1", ")]", " }}"),
    ("", "{% if 1 %}", "x", "{% endif %}", ""),
    ("", "{% if x %}a{% else %}", "x", "{% endif %}", ""),
    ("{% if 0 %}", "{% elif 0 %}", "", "", "{% endif %}"),
    ("{% if 0 %}", "{% elif x %}a", "", "", "{% else %}{% endif %}"),
    ("", "{% if 0 %}{% elif 1 %}", "x", "{% endif %}", ""),
    ("", "{% for a in [1] %}", "x", "{% endfor %}", ""),
    ("", "{% for a in [1, 2] %}", "x", "{% endfor %}", ""),
    ("", "{% for a in [] %}{% else %}", "x", "{% endfor %}", ""),
    ("", "{% for a in [1] if 1 %}", "x", "{% endfor %}", ""),
    ("", "{% for a in [1] recursive %}", "x", "{% endfor %}", ""),
    ("", "{% with %}", "x", "{% endwith %}", ""),
    ("", "{% with a = 1 %}", "{{ a }}", "{% endwith %}", ""),
    ("", "{% set a %}", "x", "{% endset %}", ""),
    ("", "{% set a | upper %}", "x", "{% endset %}", ""),
    ("", "{% filter upper %}", "x", "{% endfilter %}", ""),
    ("", "{% macro m() %}", "x", "{% endmacro %}", "{{ m() }}"),
    ("", "{% macro m() %}", "x", "{{ m() }}{% endmacro %}", "{{ m() }}"),
    ("{% macro m() %}{{ caller() }}{% endmacro %}", "{% call m() %}", "x", "{% endcall %}", ""),
    ("{% macro m(a) %}{{ caller(a) }}{% endmacro %}", "{% call(b) m(1) %}", "x", "{% endcall %}", ""),
    ("", "{% generation %}", "x", "{% endgeneration %}", ""),
    ("", "{% autoescape true %}", "x", "{% endautoescape %}", ""),
    ("", "{% if 1 %}{% for a in [1] %}{% with b = a %}", "x", "{% endwith %}{% endfor %}{% endif %}", ""),
    ("{% for ", "(a, ", "b", ")", " in x %}{% endfor %}"),
    ("{% for ", "(", "b", ")", " in x %}{% endfor %}"),
    ("{% for ", "a, ", "b", "", " in [[1]] %}{% endfor %}"),
    ("{% set ", "(a, ", "b", ")", " = x %}"),
    ("{% set ", "a, ", "b", "", " = x %}"),
    ("{% set ", "a.", "b", "", " = x %}"),
    ("{% set x = ", "[", "", "]", " %}{{ x }}"),
    ("{% if ", "not ", "x", "", " %}{% endif %}"),
    ("{% call ", "x(", "", ")", " %}{% endcall %}"),
    ("{% filter ", "upper|", "upper", "", " %}a{% endfilter %}"),
    ("{% set a", "|upper", "", "", " %}a{% endset %}"),
    ("{% macro m(", "a, ", "b", "", ") %}{% endmacro %}{{ m() }}"),
    ("{% macro m(a=", "[", "", "]", ") %}{% endmacro %}{{ m() }}"),
    ("{% with ", "a = 1, ", "b = 1", "", " %}{% endwith %}"),
    ("{{ [", "1, ", "1", "", "]|length }}"),
    ("{{ (", "1, ", "1", "", ")|length }}"),
    ("{{ {", "1: 1, ", "2: 2", "", "}|length }}"),
    ("{{ [", "[], ", "1", "", "] }}"),
    ("{{ dict(", "a=1, ", "b=1", "", ") }}"),
    ("{{ x(", "1, ", "1", "", ") }}"),
    ("{{ range(", "*x, ", "1", "", ") }}"),
    ("{{ ", "'a' ", "'a'", "", " }}"),
];

/// Texts that a lexer may look through once for each of their parts.
const SCANNED: &[&str] = &[
    "{#",
    "{##}",
    "{{",
    "{%",
    "{{ '",
    "'",
    "\"",
    "{{ \"\\",
    "{% raw %}",
    "{% raw %}{% endraw %}",
    "{%- raw -%}",
    "#}",
    "}}",
    "%}",
    "{",
    "{{1}}",
    "{{ 1 }}\n",
    " {% set x = 1 %}",
    "{%+ set x = 1 +%}",
    "   {#",
    "{%- if 1 -%}   ",
    "\n",
    "\r",
    "\r\n",
    " ",
    "\t",
    " {{- 1 -}} ",
    "-%}",
    "{{-",
    "{{ x }",
    "{% end",
    "{% endif %}",
    "{% else %}",
    "{% break %}",
    "{% endraw",
    "\\",
    "{{ \\",
    "_",
    "9",
    "{{ 9",
    "{{ a",
    "é",
    "{{ é",
    "{{ '\\u00e9",
    "{# {# #}",
    "{% if %}",
    "{% for %}",
    "{{ ()",
    "{{ [)",
    "{{ ]",
    "\0",
    "{{ \0 }}",
    "{% raw %}{",
    "{{ 1 if }}",
    "{{ 'a' ~",
];

fn repeat(chain: &Chain, count: usize) -> String {
    let (begin, unit, middle, close, end) = chain;
    [*begin, &unit.repeat(count), middle, &close.repeat(count), end].concat()
}

/// The counts: below any limit on nesting, where the stack of 2 MB ends without one, and as long as a template can be.
const COUNTS: [usize; 4] = [120, 900, 6_000, 60_000];
const LONGEST: usize = 1 << 20;

pub fn each(visit: &mut dyn FnMut(Case)) {
    let mut add = |name: String, source: String| {
        if source.len() <= LONGEST + 1 {
            visit(Case::new(name, source));
        }
    };
    for count in COUNTS {
        for unit in FLAT {
            // On something that is there, on something that is not, and as a condition.
            add(format!("{count} of 1{unit:?}"), format!("{{{{ 1{} }}}}", unit.repeat(count)));
            add(format!("{count} of x{unit:?}"), format!("{{{{ x{} }}}}", unit.repeat(count)));
            add(format!("{count} of messages{unit:?}"), format!("{{{{ messages{} }}}}", unit.repeat(count)));
            add(format!("{count} of if 'a'{unit:?}"), format!("{{% if 'a'{} %}}b{{% endif %}}", unit.repeat(count)));
        }
        for chain in NESTED {
            add(format!("{count} of {chain:?}"), repeat(chain, count));
            add(format!("{count} of {chain:?}, cut"), {
                let text = repeat(chain, count);
                text[..chain.0.len() + chain.1.len() * count].to_string()
            });
        }
    }
    for unit in SCANNED {
        for length in [2_000, LONGEST / 4, LONGEST - 8] {
            add(format!("{length} bytes of {unit:?}"), unit.repeat(length / unit.len()));
            add(
                format!("{length} bytes of {unit:?} in an output"),
                format!("{{{{ {}", unit.repeat((length - 3) / unit.len())),
            );
        }
    }
    let digits = "9".repeat(400_000);
    for number in [
        "{}",
        "{}.{}",
        "0.{}",
        "1e{}",
        "1e-{}",
        "{}e5",
        "0x{}",
        "0b{}",
        "0o{}",
        "1_{}",
        "{}_1",
        "-{}",
        "{}|round",
        "{}|int",
        "'{}'|int",
        "'{}'|float",
        "'0.{}'|float",
        "'1e{}'|float",
        "'{}'|int(0, 16)",
        "'{}'.zfill(9)",
    ] {
        add(format!("huge number {number}"), format!("{{{{ {} }}}}", number.replace("{}", &digits)));
    }
    let letters = "a".repeat(500_000);
    for name in [
        "{{ @ }}",
        "{{ x.@ }}",
        "{{ x|@ }}",
        "{{ x is @ }}",
        "{% @ %}",
        "{% set @ = 1 %}{{ @ }}",
        "{{ '@' }}",
        "{{ x('@') }}",
        "{{ raise_exception('@') }}",
        "{{ x.y['@'] }}",
        "{{ {}['@'].a }}",
        "{% macro @() %}{% endmacro %}{{ @() }}",
        "{% block @ %}{% endblock %}",
        "{% include '@' %}",
        "{{ '@'.@() }}",
    ] {
        add(format!("long name in {name}"), name.replace('@', &letters));
    }
    for end in ["", " ", "x", " }", " %", "'", " '", " (", " |", " is", " if"] {
        for begin in [
            "{{",
            "{%",
            "{#",
            "{{ x",
            "{% if",
            "{% if x",
            "{% for",
            "{% for a in",
            "{% set",
            "{% set a =",
            "{% raw",
            "{% macro",
            "{% call",
            "{% filter",
        ] {
            add(format!("cut after {begin}{end}"), format!("{begin}{end}"));
        }
    }
    let many = |unit: &dyn Fn(usize) -> String, count: usize| (0..count).map(unit).collect::<String>();
    add("many macros".into(), many(&|i| format!("{{% macro m{i}() %}}{{% endmacro %}}"), 20_000));
    add("many variables".into(), many(&|i| format!("{{% set v{i} = {i} %}}"), 40_000));
    add("many blocks".into(), many(&|i| format!("{{% block b{i} %}}{{% endblock %}}"), 20_000));
    add("many keys".into(), format!("{{{{ {{{}}}|length }}}}", many(&|i| format!("'key {i}': {i}, "), 40_000)));
    add("many arguments".into(), format!("{{{{ dict({})|length }}}}", many(&|i| format!("a{i}={i}, "), 40_000)));
    add(
        "many parameters".into(),
        format!("{{% macro m({}a) %}}{{% endmacro %}}{{{{ m() }}}}", many(&|i| format!("a{i}, "), 40_000)),
    );
    add("many loops".into(), many(&|i| format!("{{% for x{i} in [1] %}}{{{{ x{i} }}}}{{% endfor %}}"), 16_000));
    add("more than a template may have".into(), "x".repeat(LONGEST + 1));
}
