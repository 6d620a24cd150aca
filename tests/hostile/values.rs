//! Templates that build large, deep, cyclic or shared values, and operations that such values make expensive.

use super::Case;

/// Values that are large, or would be.
const LARGE: &[&str] = &[
    "[0] * 1000000000000",
    "'a' * 1000000000000",
    "(1, 2) * 100000000000",
    "range(1000000000000)",
    "'ab ' * 300000",
    "'<' * 400000",
    "[1] * 90000",
    "[1.5, 'x', none] * 30000",
    "['x y'] * 90000",
    "[[2, 1]] * 50000",
    "[{'a': 1, 'b': 'x'}] * 50000",
    "range(90000)|list",
    "long",
    "items",
    "dict(items|batch(2)|list)",
    "[long] * 90000",
    "range(90000)|map('string')",
];

/// What can be done with a value `x`.
const USES: &[&str] = &[
    "x|list|length", "x|length", "x|sum", "x|sum(start=[])", "x|max", "x|min", "x|sort|length", "x|sort(reverse=true)|first", "x|unique|list|length", "x|join|length", "x|join(x|string)|length",
    "x|join('-')|length", "x|map('upper')|list|length", "x|map('string')|join|length", "x|map('tojson')|list|length", "x|map(attribute='a')|list|length", "x|batch(3)|list|length",
    "x|batch(3, 'fill')|list|length", "x|batch(1000000000, 1)|list|length", "x|slice(3)|list|length", "x|slice(1000000000)|list|length", "x|groupby(0)|length", "x|groupby('a')|length", "x|tojson|length",
    "x|tojson(indent=100000)|length", "x|tojson(indent='abc' * 10000)|length", "x|tojson(separators=('a' * 100000, 'b'))|length", "x|string|length", "(x ~ x)|length", "(x + x)|length",
    "x|first", "x|last", "x|reverse|list|length", "'b' in x", "0 in x", "1.5 not in x", "x in [x]", "x == x", "(x|list) == (x|list)", "(x|list) < (x|list)", "(x|string) == (x|string)", "x != [x]",
    "x|select|list|length", "x|reject('none')|list|length", "x|select('in', x)|list|length", "x|selectattr('a')|list|length", "x|rejectattr('a', 'eq', 2)|list|length", "x[::-1]|length", "x[1:]|length", "x[::2]|list|length",
    "x|wordcount", "x|center(1000000000)|length", "x|indent(1000000)|length", "x|indent|length", "x|replace('a', 'bb')|length", "x|replace('', x)|length", "x|replace('a', x)|length", "x.replace('a', x)|length",
    "x.split('a')|length", "x.split()|length", "x.rsplit('b', 100000)|length", "x.splitlines()|length", "x.join(x)|length", "x.join(['a'] * 90000)|length", "x|title|length", "x|capitalize|length",
    "x|upper|lower|length", "x.swapcase()|length", "x.strip(x)|length", "x.lstrip('ba <')|length", "x|trim(x)|length", "x.find(x ~ 'b')", "x.count('ab')", "x.count(x)", "x.index(7)", "x.rfind('b' ~ x)",
    "x.find('a' * 20000 ~ 'b')", "x.startswith(x)", "x.endswith(x)", "x.partition('b')|length", "x.expandtabs(1000000)|length", "x.zfill(1000000000)", "x.ljust(1000000000)", "x.center(999999999, 'é')", "x.removeprefix(x)", "x.encode()",
    "'%s' % x", "'%r%r' % (x, x)", "'%1000000000s' % x", "'%.1000000000s' % x", "'%*d' % (1000000000, 1)", "'%s' |format(x)|length", "'{}{}'.format(x, x)|length", "'{:>1000000000}'.format(x)", "'{0[0]}'.format(x)", "'{:{}}'.format(1, x)",
    "x.format(x)|length", "(x|string) % ()", "x|urlencode|length", "x|escape|length", "x|striptags|length", "x|truncate(5)", "x|truncate(1000000000)|length", "x|wordwrap(1)|length", "x|wordwrap(1000000000)|length", "x|xmlattr|length",
    "x|items|list|length", "x|dictsort|length", "x.items()|list|length", "x.keys()|list|length", "x.values()|list|length", "x.copy()|length", "dict(x)|length", "dict(**x)|length", "namespace(**x)", "cycler(*x).next()", "dict(a=x, **x)|length",
    "x.update(x)", "x.append(x)", "x.extend(x)", "x.insert(0, x)", "x.pop(0)", "x.remove(2)", "x.sort()", "x.reverse()", "x.clear()", "x.popitem()", "x.setdefault('a', x)", "x.get(x)", "{x: 1}|length", "{'a': x}[x]", "[x, x]|unique|list|length",
    "x|int", "x|float", "x|int(0, 36)", "x|round", "x|abs", "x|default(1, true)|length", "x|attr('a')", "x is iterable", "x is in x", "x is eq x", "x is upper", "x is divisibleby 3", "x * 1000", "x * 1000000000", "x ** 2", "-x", "x % x", "x // 2",
    "x|from_json", "raise_exception(x)", "strftime_now(x)|length", "strftime_now('%A' * 200000)|length", "x|filesizeformat", "x|urlize|length", "x|pprint|length", "x|random", "x|forceescape|length", "x|safe|length", "lipsum(n=100000)", "range(0, 90000)[x]",
    "x.isalpha()", "x.isidentifier()", "x.istitle()", "x.casefold()|length", "x|list|tojson|length", "x|batch(2)|map('list')|list|length", "x|map('list')|list|length", "x|map('default', x)|list|length", "x|map('replace', 'x', 'y' * 10000)|list|length",
];

pub fn products() -> Vec<Case> {
    let all = std::env::var_os("WAVELM_HOSTILE_ALL").is_some();
    let mut cases = Vec::new();
    for (i, value) in LARGE.iter().enumerate() {
        for (j, operation) in USES.iter().enumerate() {
            cases.push(Case::new(format!("{operation} with {value}"), format!("{{% set x = {value} %}}{{{{ {operation} }}}}")));
            // Each operation again and again: with one of the values, or with all where there is time.
            if all || (j * 5) % LARGE.len() == i {
                let text = format!("{{% set x = {value} %}}{{% for i in range(90000) %}}{{% set y = {operation} %}}{{% endfor %}}");
                cases.push(Case::new(format!("{operation} with {value} again and again"), text));
            }
        }
    }
    cases
}

/// One step of growth of `ns.x`, which is taken again and again.
const GROWTH: &[(&str, &str)] = &[
    ("[0]", "ns.x + ns.x"), ("[0]", "ns.x * 2"), ("[0]", "[ns.x, ns.x]"), ("[0]", "(ns.x, ns.x)"), ("[0]", "{'a': ns.x, 'b': ns.x}"), ("[]", "[ns.x]"), ("()", "(ns.x,)"), ("{}", "{'a': ns.x}"), ("{}", "dict(a=ns.x)"), ("{}", "namespace(a=ns.x)"),
    ("'a'", "ns.x ~ ns.x"), ("'a'", "ns.x + ns.x"), ("'a'", "ns.x * 2"), ("'a'", "ns.x * 1000"), ("'a'", "'%s%s' % (ns.x, ns.x)"), ("'a'", "'%s%s'|format(ns.x, ns.x)"), ("'a'", "'{0}{0}'.format(ns.x)"), ("'a'", "ns.x|replace('a', 'aa')"),
    ("'a'", "ns.x.replace('', 'aa')"), ("'a'", "ns.x|join(ns.x)"), ("'ab'", "ns.x.join([ns.x, ns.x])"), ("'a'", "ns.x|tojson"), ("'\\\\'", "ns.x|tojson"), ("'\\''", "[ns.x]|string"), ("'\"'", "ns.x|urlencode"), ("'<'", "ns.x|escape|string"), ("'&'", "ns.x|forceescape"),
    ("'ß'", "(ns.x ~ ns.x)|upper"), ("'a'", "ns.x|center(ns.x|length * 3)"), ("'a'", "ns.x|indent(ns.x|length)"), ("'a\\nb'", "(ns.x ~ ns.x)|indent(99)"), ("'a b'", "ns.x.split() + ns.x.split()|join(' ')"), ("'a'", "ns.x ~ 'b'"), ("'a'", "'b' ~ ns.x"),
    ("'a'", "ns.x ~ long"), ("'a\\tb'", "(ns.x ~ ns.x).expandtabs(100)"), ("[0]", "ns.x|list + ns.x"), ("[0]", "ns.x|batch(1)|list + ns.x"), ("[0]", "ns.x|map('string')|list + ns.x"), ("[0]", "ns.x|map('string')"), ("[0]", "ns.x|select"), ("[0]", "ns.x|reject('none')"),
    ("[0]", "ns.x|reverse"), ("[0]", "ns.x[0:]"), ("[0]", "ns.x|batch(1)"), ("[0]", "ns.x|slice(1)"), ("[0]", "ns.x|unique"), ("[0]", "ns.x|map('list')"), ("[[0]]", "ns.x|sum(start=ns.x)"), ("[[0]]", "ns.x|groupby(0)"), ("[{'a': 1}]", "ns.x|map(attribute='a')"), ("{'a': 1}", "ns.x.items()"),
    ("{'a': 1}", "ns.x|items"), ("{'a': 1}", "dict(ns.x, **{ns.x|length|string: ns.x})"), ("{}", "dict(ns.x, **{loop.index|string: 1})"), ("2", "ns.x * ns.x"), ("2", "ns.x ** 2"), ("2", "ns.x ** ns.x"), ("3.5", "ns.x ** 3"), ("7", "ns.x // 0.001"), ("10", "ns.x * 1000000000"),
    ("[0]", "[ns.x]|tojson"), ("[0]", "ns.x|tojson(indent=2)"), ("'[1]'", "'[' ~ ns.x ~ ']'"), ("'x'", "ns.x|xmlattr"), ("{'a': '<'}", "{'a': ns.x|xmlattr}"), ("undef", "ns.x|default([ns.x])"), ("'a'", "ns.x|list|join('abc')"), ("'a'", "(ns.x|list + ns.x|list)|join(ns.x)"),
    ("'é'", "(ns.x * 3)|tojson(ensure_ascii=true)"), ("[0]", "cycler(*[ns.x]).current"), ("[0]", "ns"), ("[0]", "[ns]"), ("[0]", "{'a': ns}"), ("[0]", "loop"), ("'a'", "ns.x|wordwrap(1, true, 'aaa')"), ("'x y '", "(ns.x ~ ns.x)|title"), ("'1'", "(ns.x ~ ns.x)|int"), ("(1,)", "ns.x + ns.x"),
];

/// What is done with `ns.x` once it has grown.
const ENDS: &[&str] = &["ns.x|length", "ns.x", "ns.x|tojson|length", "ns.x == ns.x", "ns.x == ns.y", "ns.x < ns.y", "ns.x in [ns.y]", "{ns.x: 1}|length", "[ns.x, ns.y]|sort|length", "[ns.x, ns.y]|unique|list|length", "[ns.x, ns.y]|max", "(ns.x ~ '')|length", "ns.x|string|length", "'%s' % ns.x", "ns.x|list|length",
    "ns.x|first", "ns.x|join|length", "ns.x|sum", "'{}'.format(ns.x)|length", "'a' in ns.x", "ns.x is eq ns.y", "ns.x|pprint|length", "ns.x|map('string')|list|length", "raise_exception(ns.x)"];

/// Values that hold themselves, made by statements.
const CYCLES: &[&str] = &[
    "{% set x = namespace() %}{% set x.x = x %}", "{% set x = namespace() %}{% set x.x = [x] %}", "{% set x = namespace() %}{% set x.x = {'a': (x,)} %}", "{% set x = [] %}{% set _ = x.append(x) %}", "{% set x = [] %}{% set _ = x.extend([x, x]) %}",
    "{% set x = [1, 2] %}{% set _ = x.insert(0, x) %}", "{% set x = {} %}{% set _ = x.update(a=x) %}", "{% set x = {} %}{% set _ = x.setdefault('a', x) %}", "{% set x = {} %}{% set y = [x] %}{% set _ = x.update({'a': y}) %}", "{% set x = [] %}{% set y = (x, x) %}{% set _ = x.append(y) %}",
    "{% set x = [] %}{% set y = {'a': x} %}{% set _ = x.append(y.items()) %}", "{% set x = [] %}{% set _ = x.append(x|map('string')) %}", "{% set x = [] %}{% set _ = x.append(x|reverse) %}", "{% set x = namespace() %}{% set y = namespace(x=x) %}{% set x.y = y %}", "{% set x = [] %}{% set c = cycler(x) %}{% set _ = x.append(c) %}",
    "{% macro m() %}{% endmacro %}{% set x = namespace(m=m) %}{% set x.x = x %}", "{% set x = messages %}{% set _ = x.append(x) %}", "{% set x = messages[0] %}{% set _ = x.update(content=x) %}", "{% set x = [] %}{% for i in range(100) %}{% set _ = x.append([x, x]) %}{% endfor %}",
];

const ON_CYCLES: &[&str] = &[
    "x", "x|tojson", "x == x", "x == [x]", "[x] == [[x]]", "x != x", "x < [x]", "{x: 1}", "[x, x]|sort", "[x, [x]]|unique|list", "x in x", "x in [[x]]", "x|string|length", "x ~ x", "'%s' % x", "'%r'|format(x)", "'{}'.format(x)", "x|join", "x|list|length", "x|first", "x|pprint", "x|length", "x.copy()", "x|list == x",
    "x|sum(start=[])", "x|map('string')|list", "x|max", "[x, [x]]|max", "x|tojson(indent=2)", "x|urlencode", "x|xmlattr", "raise_exception(x)", "x|default(1)", "x|reverse|list|length", "dict(x)", "x|groupby(0)", "x|items|list", "x.extend(x)", "x.index([x])", "x.count(x)", "x.remove([x])", "namespace(x)", "x|wordcount", "x|upper", "x|replace('a', 'b')",
    "x is eq x", "x is in x", "x is sameas x", "x|attr('x')", "x|escape", "x|safe", "x|batch(1)|list", "x * 2", "x + x",
];

const OTHERS: &[(&str, &str)] = &[
    ("recursion", "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"),
    ("recursion that grows", "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}"),
    ("recursion with two branches", "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"),
    ("recursion of three", "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ c() }}{% endmacro %}{% macro c() %}{{ a() }}{% endmacro %}{{ a() }}"),
    ("recursion in a default", "{% macro m(a=m()) %}{{ a }}{% endmacro %}{{ m() }}"),
    ("recursion in nests", "{% macro m(x) %}{% if 1 %}{% for a in [1] %}{% with b = 1 %}{% set y %}{% filter upper %}{{ m([x, (m(x), {'a': m(x)})]) }}{% endfilter %}{% endset %}{% endwith %}{% endfor %}{% endif %}{% endmacro %}{{ m(1) }}"),
    ("recursion in an expression", "{% macro m(x) %}{{ 1 + (2 * (m(x)|length + [[[[m(x)]]]]|length)) }}{% endmacro %}{{ m(1) }}"),
    ("recursion by caller", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}"),
    ("recursion of callers", "{% macro m(n) %}{% if n %}{% call m(n - 1) %}{{ caller() }}{{ caller() }}{% endcall %}{% else %}{{ caller() }}{% endif %}{% endmacro %}{% call m(50) %}x{% endcall %}"),
    ("recursion of a loop", "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
    ("recursion of a loop that grows", "{% for a in [1, 2] recursive %}{{ loop([a, a]) }}{% endfor %}"),
    ("recursion of a loop with itself", "{% set x = [1] %}{% set _ = x.append(x) %}{% for a in x recursive %}{{ loop(x) }}{% endfor %}"),
    ("recursion through a namespace", "{% set ns = namespace() %}{% macro m() %}{{ ns.f() }}{% endmacro %}{% set ns.f = m %}{{ m() }}"),
    ("recursion through arguments", "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}"),
    ("recursion through varargs", "{% macro m() %}{{ m(*varargs, **kwargs) }}{{ varargs }}{% endmacro %}{{ m(1, 2, a=3) }}"),
    ("varargs that grow", "{% macro m() %}{{ m(*varargs + varargs) }}{% endmacro %}{{ m(1, 2) }}"),
    ("loops in loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"),
    ("loops that filter all", "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"),
    ("a loop over what it grows", "{% set x = [1] %}{% for a in x %}{% set _ = x.append(a) %}{% endfor %}"),
    ("a loop over a dictionary that it grows", "{% set x = {'a': 1} %}{% for a in x %}{% set _ = x.update({a ~ 'a': 1}) %}{% endfor %}"),
    ("a loop over what it doubles", "{% set x = [1] %}{% for a in x %}{% set _ = x.extend(x) %}{% endfor %}"),
    ("a loop over itself inserted", "{% set x = [1] %}{% for a in x %}{% set _ = x.insert(0, a) %}{% endfor %}"),
    ("sort while sorting", "{% set x = [3, 1, 2] %}{% for a in x|sort %}{% set _ = x.sort() %}{% set _ = x.append(x|sort|first) %}{% endfor %}{{ x }}"),
    ("insert at the front", "{% set x = [] %}{% for a in range(99999) %}{% set _ = x.insert(0, a) %}{% endfor %}{{ x|length }}"),
    ("pop at the front", "{% set x = range(90000)|list %}{% for a in range(90000) %}{% set _ = x.pop(0) %}{% endfor %}{{ x|length }}"),
    ("keys taken out at the front", "{% set x = dict(items|batch(2)|list) %}{% for a in x|list %}{% set _ = x.pop(a) %}{% endfor %}{{ x|length }}"),
    ("many keys", "{% set x = {} %}{% for a in range(90000) %}{% set _ = x.update({a: a, a|string: a, a + 0.5: a}) %}{% endfor %}{{ x|length }}"),
    ("copies of a growing dictionary", "{% set ns = namespace(x={}) %}{% for i in range(20000) %}{% set ns.x = dict(ns.x, **{i|string: 1}) %}{% endfor %}{{ ns.x|length }}"),
    ("copies of a list, kept", "{% set x = range(90000)|list %}{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(x.copy()) %}{% endfor %}"),
    ("slices of a list, kept", "{% set x = range(90000)|list %}{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(x[1:]) %}{% endfor %}"),
    ("texts, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long ~ i) %}{% endfor %}"),
    ("slices of a text, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long[i:]) %}{% endfor %}"),
    ("letters, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long|list) %}{% endfor %}"),
    ("words, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long.split()) %}{% endfor %}"),
    ("dictionaries, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append({'a': i, 'b': {}}) %}{% endfor %}{% endfor %}"),
    ("namespaces, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(namespace(a=i)) %}{% endfor %}{% endfor %}"),
    ("empty lists, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.extend([[], (), {}, '']) %}{% endfor %}{% endfor %}"),
    ("iterators, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(items|map('upper')) %}{% endfor %}{% endfor %}"),
    ("macros, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% macro m() %}{{ i }}{% endmacro %}{% set _ = y.append(m) %}{% endfor %}{% endfor %}"),
    ("numbers, kept", "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(j) %}{% endfor %}{% endfor %}"),
    ("output", "{% for a in range(99999) %}{{ long }}{% endfor %}"),
    ("output of small pieces", "{% for a in range(99999) %}{% for a in range(99999) %}{{ messages[1].content[0] }}x{% endfor %}{% endfor %}"),
    ("output into variables", "{% set ns = namespace(y=[]) %}{% for a in range(99999) %}{% set x %}{{ long }}{% endset %}{% set _ = ns.y.append(x) %}{% endfor %}"),
    ("output into filters", "{% for a in range(99999) %}{% filter upper %}{{ long }}{% endfilter %}{% endfor %}"),
    ("output into macros", "{% macro m() %}{{ long }}{% endmacro %}{% for a in range(99999) %}{% set x = m() ~ m() %}{% endfor %}"),
    ("text of the template in loops", "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}"),
    ("comparison of long equal texts", "{% set x = long ~ '' %}{% set y = '' ~ long %}{% for a in range(99999) %}{% if x == y %}{% endif %}{% endfor %}"),
    ("sorting long equal texts", "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append(long ~ a) %}{% endfor %}{{ x|sort|length }}"),
    ("sorting shared texts", "{{ ([long, long ~ 'a'] * 20000)|sort|length }}"),
    ("sorting lists of one long text", "{{ ([[long, 1], [long, 0]] * 20000)|sort|length }}"),
    ("sorting shared lists", "{% set x = [0] * 50000 %}{{ ([x, x + [1]] * 20000)|sort|length }}"),
    ("sorting backwards again", "{% set x = range(50000)|list %}{% for i in range(50000) %}{% set _ = x.sort(reverse=i is odd) %}{% endfor %}"),
    ("unique long texts", "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append(long ~ a) %}{% endfor %}{{ x|unique|list|length }}"),
    ("long keys", "{% set x = {} %}{% set k = long ~ 'x' %}{% for a in range(99999) %}{% set _ = x.update({k: a}) %}{% set _ = x[k] %}{% endfor %}"),
    ("tuples as keys", "{% set x = {} %}{% set k = (long,) * 1000 %}{% for a in range(99999) %}{% set _ = x.update({k: a}) %}{% endfor %}"),
    ("unhashable keys", "{% set x = {[]: 1} %}"),
    ("groups of long keys", "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append({'k': long ~ a % 2}) %}{% endfor %}{{ x|groupby('k')|length }}"),
    ("sums of lists", "{{ ([[0] * 500] * 20000)|sum(start=[])|length }}"),
    ("sums of texts", "{{ ([long] * 20000)|sum(start='')|length }}"),
    ("join with a long text", "{{ ([''] * 90000)|join(long)|length }}"),
    ("replace by a long text", "{{ long.replace(' ', long)|length }}"),
    ("find what nearly is there", "{% set x = 'a' * 200000 %}{% set y = 'a' * 100000 ~ 'b' %}{% for a in range(99999) %}{% set z = x.find(y) + x.count(y) + x.rfind(y) %}{% set z = y in x %}{% endfor %}"),
    ("find with a bad needle", "{% set x = 'ab' * 100000 %}{% set y = 'b' ~ 'ab' * 50000 ~ 'b' %}{{ x.find(y) }}{{ x.count(y) }}{{ x.replace(y, '')|length }}{{ x.split(y)|length }}{{ x.partition(y)|length }}{{ x.rsplit(y)|length }}"),
    ("find in lists", "{% set x = [long] * 20000 %}{% set y = long ~ 'x' %}{{ y in x }}{{ x.count(y) }}{{ x.index(y) }}"),
    ("search of lists in lists", "{% set x = [[0] * 20000] * 20000 %}{% set y = [0] * 19999 + [1] %}{{ y in x }}{{ x.count(y) }}"),
    ("strip with many letters", "{% set x = 'é' * 200000 %}{{ x.strip('a' * 200000 ~ 'é') }}{{ x.lstrip('b' * 200000 ~ 'é') }}"),
    ("tags that do not close", "{{ ('<' * 500000)|striptags|length }}{{ ('<!--' * 100000)|striptags|length }}{{ ('<a' * 100000)|striptags|length }}"),
    ("addresses that do not end", "{{ ('www.' * 100000)|urlize|length }}{{ ('http://a' * 50000)|urlize|length }}{{ ('a@' * 100000)|urlize|length }}"),
    ("words that do not break", "{{ ('a' * 500000)|wordwrap(1)|length }}{{ ('a ' * 200000)|wordwrap(100000, false)|length }}{{ ('a-' * 200000)|wordwrap(2)|length }}"),
    ("formats", "{{ ('%s' * 100000)|format(*range(100000)) }}{{ ('{}' * 100000).format(*range(100000)) }}"),
    ("formats of one long text", "{{ ('%s' * 1000) % ((long,) * 1000) }}"),
    ("format with a deep field", "{{ ('{0' ~ '[0]' * 100000 ~ '}').format([[]]) }}"),
    ("format in a format", "{{ ('{:' * 1000 ~ '}' * 1000).format(1) }}"),
    ("rounding to huge places", "{{ 1.5|round(1000000000) }}{{ 1.5|round(-1000000000) }}{{ 1.5|round(2147483648, 'floor') }}{{ '%.1000000f' % 1.5 }}"),
    ("widths", "{{ '%1000000000d' % 1 }}"),
    ("precision", "{{ '%.1000000000f' % 1.5 }}"),
    ("precision of a format", "{{ '{:.1000000000f}'.format(1.5) }}"),
    ("width of a format", "{{ '{:1000000000}'.format(1) }}"),
    ("powers", "{{ 10 ** 10 ** 10 }}"),
    ("powers of two", "{{ 2 ** 1000000000 }}"),
    ("powers of fractions", "{{ 0.5 ** 10 ** 300 }}{{ (-8) ** 0.5 }}{{ 0 ** -1 }}"),
    ("extreme divisions", "{{ (-170141183460469231731687303715884105727 - 1) // -1 }}{{ (-170141183460469231731687303715884105727 - 1) % -1 }}"),
    ("extreme numbers", "{{ -(-170141183460469231731687303715884105727 - 1) }}{{ (-170141183460469231731687303715884105727 - 1)|abs }}{{ 170141183460469231731687303715884105727 * 2 }}"),
    ("extreme indices", "{{ [1][9223372036854775807] }}{{ [1][-9223372036854775808] }}{{ 'a'[170141183460469231731687303715884105727] }}{{ [1][::-9223372036854775808] }}{{ 'abc'[9223372036854775807::-9223372036854775807] }}"),
    ("extreme ranges", "{{ range(-9223372036854775808, 9223372036854775807)|length }}{{ 5 in range(170141183460469231731687303715884105727) }}{{ range(0, 10, 170141183460469231731687303715884105727)|list }}"),
    ("ranges compared", "{{ range(1000000000) == range(1000000000) }}{{ 999999999 in range(1000000000) }}{{ 0.5 in range(1000000000) }}"),
    ("extreme counts", "{{ 'a'.replace('a', 'b', 9223372036854775807) }}{{ 'a b'.split(' ', 170141183460469231731687303715884105727) }}{{ 'a'|truncate(-9223372036854775808) }}{{ 'a'|indent(-5) }}{{ 'a'.center(-9223372036854775808) }}"),
    ("not a number", "{% set x = '1e999'|float - '1e999'|float %}{{ [x, 1, x, 2]|sort }}{{ x|int }}{{ [x]|unique|list }}{{ {x: 1}[x] }}{{ x|round }}{{ '%d' % x }}{{ x|tojson }}"),
    ("infinity", "{% set x = '1e999'|float %}{{ x|int }}{{ x // 1 }}{{ x % 2 }}{{ [1] * x }}{{ range(x) }}{{ x|round(2) }}{{ x|filesizeformat }}{{ '{:d}'.format(x) }}"),
    ("times", "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = strftime_now('%A %B %Y %c %x') %}{% endfor %}{% endfor %}"),
    ("strange times", "{{ strftime_now('%1000000000d') }}{{ strftime_now('%') }}{{ strftime_now('%' * 100000) }}{{ strftime_now('%-%-%-') }}"),
    ("cycles of a cycler", "{% set c = cycler(*range(90000)) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set _ = c.next() %}{% endfor %}{% endfor %}"),
    ("changes", "{% for a in range(99999) %}{% if loop.changed(long, items, messages) %}{% endif %}{% endfor %}"),
    ("deep arguments as text", "{{ ('[' * 100000 ~ ']' * 100000)|from_json }}"),
    ("wide JSON", "{% for a in range(99999) %}{% set x = ('[' ~ '1,' * 100000 ~ '1]')|from_json %}{% endfor %}"),
    ("deep JSON", "{% set ns = namespace(x=[]) %}{% for a in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson|length }}"),
    ("generators of generators", "{% set ns = namespace(x=items) %}{% for i in range(50000) %}{% set ns.x = ns.x|map('string')|select|reject('none')|unique %}{% endfor %}{{ ns.x|list|length }}"),
    ("generators of generators, dropped", "{% set ns = namespace(x=items) %}{% for i in range(50000) %}{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|first }}"),
    ("lists of lists, dropped", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [[[[[[[[[[ns.x]]]]]]]]]] %}{% endfor %}ok"),
    ("dictionaries of tuples, dropped", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = {'a': (ns.x, {'b': [ns.x]})} %}{% endfor %}ok"),
    ("namespaces of namespaces, dropped", "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}ok"),
    ("lists in themselves, dropped", "{% for i in range(90000) %}{% set x = [] %}{% set _ = x.append(x) %}{% set y = [long ~ i] %}{% set _ = y.append(y) %}{% endfor %}ok"),
    ("appended levels", "{% set ns = namespace(x=[]) %}{% set y = ns.x %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% endfor %}{{ y|length }}"),
    ("appended levels, printed", "{% set ns = namespace(x=[]) %}{% set y = ns.x %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% endfor %}{{ y }}"),
    ("appended levels, compared", "{% set ns = namespace(x=[], v=[]) %}{% set y = ns.x %}{% set w = ns.v %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% set z = [] %}{% set _ = ns.v.append(z) %}{% set ns.v = z %}{% endfor %}{{ y == w }}{{ [y, w]|sort|length }}{{ y in [w] }}"),
    ("tool calls in loops", "{% for a in range(99999) %}{% for m in messages %}{% set x = m.tool_calls|tojson ~ tools|tojson %}{% endfor %}{% endfor %}"),
    ("blocks in blocks", "{% block a %}{% block b %}{{ self.a() }}{% endblock %}{% endblock %}"),
    ("a block in itself", "{% block a %}{{ self.a() }}{% endblock %}"),
    ("include itself", "{% include 'chat template' %}{% import 'chat template' as x %}"),
    ("extend itself", "{% extends 'chat template' %}"),
    ("self", "{{ self }}{{ self._TemplateReference__context }}{{ self.__class__ }}"),
    ("attributes of Python", "{{ ''.__class__.__mro__ }}{{ x.__init__.__globals__ }}{{ [].__class__ }}{{ range.__class__ }}"),
];

pub fn cases() -> Vec<Case> {
    let all = std::env::var_os("WAVELM_HOSTILE_ALL").is_some();
    let mut cases: Vec<Case> = OTHERS.iter().map(|(name, source)| Case::new(*name, *source)).collect();
    for (i, (start, step)) in GROWTH.iter().enumerate() {
        for (j, end) in ENDS.iter().enumerate() {
            for count in [40, 20_000] {
                if all || (i + j) % 4 == usize::from(count > 40) {
                    let text = format!(
                        "{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range({count}) %}}{{% set ns.y = ns.x %}}\
                         {{% set ns.x = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
                    );
                    cases.push(Case::new(format!("{end} after {count} of {step} from {start}"), text));
                }
            }
        }
    }
    for cycle in CYCLES {
        for operation in ON_CYCLES {
            cases.push(Case::new(format!("{operation} on {cycle}"), format!("{cycle}{{{{ {operation} }}}}")));
        }
    }
    cases
}
