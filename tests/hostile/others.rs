//! Templates that are hostile in a way of their own: a name and the template.

pub const OTHERS: &[(&str, &str)] = &[
    ("recursion", "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"),
    ("recursion that grows", "{% macro m(x) %}{{ m([x]) }}{% endmacro %}{{ m(1) }}"),
    (
        "recursion with two branches",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ),
    (
        "recursion of three",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ c() }}{% endmacro %}{% macro c() %}{{ a() }}{% endmacro %}{{ a() }}",
    ),
    ("recursion in a default", "{% macro m(a=m()) %}{{ a }}{% endmacro %}{{ m() }}"),
    (
        "recursion in nests",
        "{% macro m(x) %}{% if 1 %}{% for a in [1] %}{% with b = 1 %}{% set y %}{% filter upper %}{{ m([x, (m(x), {'a': m(x)})]) }}{% endfilter %}{% endset %}{% endwith %}{% endfor %}{% endif %}{% endmacro %}{{ m(1) }}",
    ),
    (
        "recursion in an expression",
        "{% macro m(x) %}{{ 1 + (2 * (m(x)|length + [[[[m(x)]]]]|length)) }}{% endmacro %}{{ m(1) }}",
    ),
    (
        "recursion by caller",
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}",
    ),
    (
        "recursion of callers",
        "{% macro m(n) %}{% if n %}{% call m(n - 1) %}{{ caller() }}{{ caller() }}{% endcall %}{% else %}{{ caller() }}{% endif %}{% endmacro %}{% call m(50) %}x{% endcall %}",
    ),
    ("recursion of a loop", "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}"),
    ("recursion of a loop that grows", "{% for a in [1, 2] recursive %}{{ loop([a, a]) }}{% endfor %}"),
    (
        "recursion of a loop with itself",
        "{% set x = [1] %}{% set _ = x.append(x) %}{% for a in x recursive %}{{ loop(x) }}{% endfor %}",
    ),
    (
        "recursion through a namespace",
        "{% set ns = namespace() %}{% macro m() %}{{ ns.f() }}{% endmacro %}{% set ns.f = m %}{{ m() }}",
    ),
    ("recursion through arguments", "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}"),
    (
        "recursion through varargs",
        "{% macro m() %}{{ m(*varargs, **kwargs) }}{{ varargs }}{% endmacro %}{{ m(1, 2, a=3) }}",
    ),
    ("varargs that grow", "{% macro m() %}{{ m(*varargs + varargs) }}{% endmacro %}{{ m(1, 2) }}"),
    (
        "loops in loops",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    ),
    (
        "loops that filter all",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    ),
    ("a loop over what it grows", "{% set x = [1] %}{% for a in x %}{% set _ = x.append(a) %}{% endfor %}"),
    (
        "a loop over a dictionary that it grows",
        "{% set x = {'a': 1} %}{% for a in x %}{% set _ = x.update({a ~ 'a': 1}) %}{% endfor %}",
    ),
    ("a loop over what it doubles", "{% set x = [1] %}{% for a in x %}{% set _ = x.extend(x) %}{% endfor %}"),
    ("a loop over itself inserted", "{% set x = [1] %}{% for a in x %}{% set _ = x.insert(0, a) %}{% endfor %}"),
    (
        "sort while sorting",
        "{% set x = [3, 1, 2] %}{% for a in x|sort %}{% set _ = x.sort() %}{% set _ = x.append(x|sort|first) %}{% endfor %}{{ x }}",
    ),
    (
        "insert at the front",
        "{% set x = [] %}{% for a in range(99999) %}{% set _ = x.insert(0, a) %}{% endfor %}{{ x|length }}",
    ),
    (
        "pop at the front",
        "{% set x = range(90000)|list %}{% for a in range(90000) %}{% set _ = x.pop(0) %}{% endfor %}{{ x|length }}",
    ),
    (
        "keys taken out at the front",
        "{% set x = dict(items|batch(2)|list) %}{% for a in x|list %}{% set _ = x.pop(a) %}{% endfor %}{{ x|length }}",
    ),
    (
        "many keys",
        "{% set x = {} %}{% for a in range(90000) %}{% set _ = x.update({a: a, a|string: a, a + 0.5: a}) %}{% endfor %}{{ x|length }}",
    ),
    (
        "copies of a growing dictionary",
        "{% set ns = namespace(x={}) %}{% for i in range(20000) %}{% set ns.x = dict(ns.x, **{i|string: 1}) %}{% endfor %}{{ ns.x|length }}",
    ),
    (
        "copies of a list, kept",
        "{% set x = range(90000)|list %}{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(x.copy()) %}{% endfor %}",
    ),
    (
        "slices of a list, kept",
        "{% set x = range(90000)|list %}{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(x[1:]) %}{% endfor %}",
    ),
    ("texts, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long ~ i) %}{% endfor %}"),
    (
        "slices of a text, kept",
        "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long[i:]) %}{% endfor %}",
    ),
    ("letters, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long|list) %}{% endfor %}"),
    ("words, kept", "{% set y = [] %}{% for i in range(90000) %}{% set _ = y.append(long.split()) %}{% endfor %}"),
    (
        "dictionaries, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append({'a': i, 'b': {}}) %}{% endfor %}{% endfor %}",
    ),
    (
        "namespaces, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(namespace(a=i)) %}{% endfor %}{% endfor %}",
    ),
    (
        "empty lists, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.extend([[], (), {}, '']) %}{% endfor %}{% endfor %}",
    ),
    (
        "iterators, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(items|map('upper')) %}{% endfor %}{% endfor %}",
    ),
    (
        "macros, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% macro m() %}{{ i }}{% endmacro %}{% set _ = y.append(m) %}{% endfor %}{% endfor %}",
    ),
    (
        "numbers, kept",
        "{% set y = [] %}{% for i in range(99999) %}{% for j in range(99999) %}{% set _ = y.append(j) %}{% endfor %}{% endfor %}",
    ),
    ("output", "{% for a in range(99999) %}{{ long }}{% endfor %}"),
    (
        "output of small pieces",
        "{% for a in range(99999) %}{% for a in range(99999) %}{{ messages[1].content[0] }}x{% endfor %}{% endfor %}",
    ),
    (
        "output into variables",
        "{% set ns = namespace(y=[]) %}{% for a in range(99999) %}{% set x %}{{ long }}{% endset %}{% set _ = ns.y.append(x) %}{% endfor %}",
    ),
    ("output into filters", "{% for a in range(99999) %}{% filter upper %}{{ long }}{% endfilter %}{% endfor %}"),
    (
        "output into macros",
        "{% macro m() %}{{ long }}{% endmacro %}{% for a in range(99999) %}{% set x = m() ~ m() %}{% endfor %}",
    ),
    (
        "text of the template in loops",
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
    ),
    (
        "comparison of long equal texts",
        "{% set x = long ~ '' %}{% set y = '' ~ long %}{% for a in range(99999) %}{% if x == y %}{% endif %}{% endfor %}",
    ),
    (
        "sorting long equal texts",
        "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append(long ~ a) %}{% endfor %}{{ x|sort|length }}",
    ),
    ("sorting shared texts", "{{ ([long, long ~ 'a'] * 20000)|sort|length }}"),
    ("sorting lists of one long text", "{{ ([[long, 1], [long, 0]] * 20000)|sort|length }}"),
    ("sorting shared lists", "{% set x = [0] * 50000 %}{{ ([x, x + [1]] * 20000)|sort|length }}"),
    (
        "sorting backwards again",
        "{% set x = range(50000)|list %}{% for i in range(50000) %}{% set _ = x.sort(reverse=i is odd) %}{% endfor %}",
    ),
    (
        "unique long texts",
        "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append(long ~ a) %}{% endfor %}{{ x|unique|list|length }}",
    ),
    (
        "long keys",
        "{% set x = {} %}{% set k = long ~ 'x' %}{% for a in range(99999) %}{% set _ = x.update({k: a}) %}{% set _ = x[k] %}{% endfor %}",
    ),
    (
        "tuples as keys",
        "{% set x = {} %}{% set k = (long,) * 1000 %}{% for a in range(99999) %}{% set _ = x.update({k: a}) %}{% endfor %}",
    ),
    ("unhashable keys", "{% set x = {[]: 1} %}"),
    (
        "groups of long keys",
        "{% set x = [] %}{% for a in range(5000) %}{% set _ = x.append({'k': long ~ a % 2}) %}{% endfor %}{{ x|groupby('k')|length }}",
    ),
    ("sums of lists", "{{ ([[0] * 500] * 20000)|sum(start=[])|length }}"),
    ("sums of texts", "{{ ([long] * 20000)|sum(start='')|length }}"),
    ("join with a long text", "{{ ([''] * 90000)|join(long)|length }}"),
    ("replace by a long text", "{{ long.replace(' ', long)|length }}"),
    (
        "find what nearly is there",
        "{% set x = 'a' * 200000 %}{% set y = 'a' * 100000 ~ 'b' %}{% for a in range(99999) %}{% set z = x.find(y) + x.count(y) + x.rfind(y) %}{% set z = y in x %}{% endfor %}",
    ),
    (
        "find with a bad needle",
        "{% set x = 'ab' * 100000 %}{% set y = 'b' ~ 'ab' * 50000 ~ 'b' %}{{ x.find(y) }}{{ x.count(y) }}{{ x.replace(y, '')|length }}{{ x.split(y)|length }}{{ x.partition(y)|length }}{{ x.rsplit(y)|length }}",
    ),
    (
        "find in lists",
        "{% set x = [long] * 20000 %}{% set y = long ~ 'x' %}{{ y in x }}{{ x.count(y) }}{{ x.index(y) }}",
    ),
    (
        "search of lists in lists",
        "{% set x = [[0] * 20000] * 20000 %}{% set y = [0] * 19999 + [1] %}{{ y in x }}{{ x.count(y) }}",
    ),
    (
        "strip with many letters",
        "{% set x = 'é' * 200000 %}{{ x.strip('a' * 200000 ~ 'é') }}{{ x.lstrip('b' * 200000 ~ 'é') }}",
    ),
    (
        "tags that do not close",
        "{{ ('<' * 500000)|striptags|length }}{{ ('<!--' * 100000)|striptags|length }}{{ ('<a' * 100000)|striptags|length }}",
    ),
    (
        "addresses that do not end",
        "{{ ('www.' * 100000)|urlize|length }}{{ ('http://a' * 50000)|urlize|length }}{{ ('a@' * 100000)|urlize|length }}",
    ),
    (
        "words that do not break",
        "{{ ('a' * 500000)|wordwrap(1)|length }}{{ ('a ' * 200000)|wordwrap(100000, false)|length }}{{ ('a-' * 200000)|wordwrap(2)|length }}",
    ),
    ("formats", "{{ ('%s' * 100000)|format(*range(100000)) }}{{ ('{}' * 100000).format(*range(100000)) }}"),
    ("formats of one long text", "{{ ('%s' * 1000) % ((long,) * 1000) }}"),
    ("format with a deep field", "{{ ('{0' ~ '[0]' * 100000 ~ '}').format([[]]) }}"),
    ("format in a format", "{{ ('{:' * 1000 ~ '}' * 1000).format(1) }}"),
    (
        "rounding to huge places",
        "{{ 1.5|round(1000000000) }}{{ 1.5|round(-1000000000) }}{{ 1.5|round(2147483648, 'floor') }}{{ '%.1000000f' % 1.5 }}",
    ),
    ("widths", "{{ '%1000000000d' % 1 }}"),
    ("precision", "{{ '%.1000000000f' % 1.5 }}"),
    ("precision of a format", "{{ '{:.1000000000f}'.format(1.5) }}"),
    ("width of a format", "{{ '{:1000000000}'.format(1) }}"),
    ("powers", "{{ 10 ** 10 ** 10 }}"),
    ("powers of two", "{{ 2 ** 1000000000 }}"),
    ("powers of fractions", "{{ 0.5 ** 10 ** 300 }}{{ (-8) ** 0.5 }}{{ 0 ** -1 }}"),
    (
        "extreme divisions",
        "{{ (-170141183460469231731687303715884105727 - 1) // -1 }}{{ (-170141183460469231731687303715884105727 - 1) % -1 }}",
    ),
    (
        "extreme numbers",
        "{{ -(-170141183460469231731687303715884105727 - 1) }}{{ (-170141183460469231731687303715884105727 - 1)|abs }}{{ 170141183460469231731687303715884105727 * 2 }}",
    ),
    (
        "extreme indices",
        "{{ [1][9223372036854775807] }}{{ [1][-9223372036854775808] }}{{ 'a'[170141183460469231731687303715884105727] }}{{ [1][::-9223372036854775808] }}{{ 'abc'[9223372036854775807::-9223372036854775807] }}",
    ),
    (
        "extreme ranges",
        "{{ range(-9223372036854775808, 9223372036854775807)|length }}{{ 5 in range(170141183460469231731687303715884105727) }}{{ range(0, 10, 170141183460469231731687303715884105727)|list }}",
    ),
    (
        "ranges compared",
        "{{ range(1000000000) == range(1000000000) }}{{ 999999999 in range(1000000000) }}{{ 0.5 in range(1000000000) }}",
    ),
    (
        "extreme counts",
        "{{ 'a'.replace('a', 'b', 9223372036854775807) }}{{ 'a b'.split(' ', 170141183460469231731687303715884105727) }}{{ 'a'|truncate(-9223372036854775808) }}{{ 'a'|indent(-5) }}{{ 'a'.center(-9223372036854775808) }}",
    ),
    (
        "not a number",
        "{% set x = '1e999'|float - '1e999'|float %}{{ [x, 1, x, 2]|sort }}{{ x|int }}{{ [x]|unique|list }}{{ {x: 1}[x] }}{{ x|round }}{{ '%d' % x }}{{ x|tojson }}",
    ),
    (
        "infinity",
        "{% set x = '1e999'|float %}{{ x|int }}{{ x // 1 }}{{ x % 2 }}{{ [1] * x }}{{ range(x) }}{{ x|round(2) }}{{ x|filesizeformat }}{{ '{:d}'.format(x) }}",
    ),
    (
        "times",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set x = strftime_now('%A %B %Y %c %x') %}{% endfor %}{% endfor %}",
    ),
    (
        "strange times",
        "{{ strftime_now('%1000000000d') }}{{ strftime_now('%') }}{{ strftime_now('%' * 100000) }}{{ strftime_now('%-%-%-') }}",
    ),
    (
        "cycles of a cycler",
        "{% set c = cycler(*range(90000)) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set _ = c.next() %}{% endfor %}{% endfor %}",
    ),
    ("changes", "{% for a in range(99999) %}{% if loop.changed(long, items, messages) %}{% endif %}{% endfor %}"),
    ("deep arguments as text", "{{ ('[' * 100000 ~ ']' * 100000)|from_json }}"),
    ("wide JSON", "{% for a in range(99999) %}{% set x = ('[' ~ '1,' * 100000 ~ '1]')|from_json %}{% endfor %}"),
    (
        "deep JSON",
        "{% set ns = namespace(x=[]) %}{% for a in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson|length }}",
    ),
    (
        "generators of generators",
        "{% set ns = namespace(x=items) %}{% for i in range(50000) %}{% set ns.x = ns.x|map('string')|select|reject('none')|unique %}{% endfor %}{{ ns.x|list|length }}",
    ),
    (
        "generators of generators, dropped",
        "{% set ns = namespace(x=items) %}{% for i in range(50000) %}{% set ns.x = ns.x|map('string') %}{% endfor %}{{ ns.x|first }}",
    ),
    (
        "lists of lists, dropped",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [[[[[[[[[[ns.x]]]]]]]]]] %}{% endfor %}ok",
    ),
    (
        "dictionaries of tuples, dropped",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = {'a': (ns.x, {'b': [ns.x]})} %}{% endfor %}ok",
    ),
    (
        "namespaces of namespaces, dropped",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}ok",
    ),
    (
        "lists in themselves, dropped",
        "{% for i in range(90000) %}{% set x = [] %}{% set _ = x.append(x) %}{% set y = [long ~ i] %}{% set _ = y.append(y) %}{% endfor %}ok",
    ),
    (
        "appended levels",
        "{% set ns = namespace(x=[]) %}{% set y = ns.x %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% endfor %}{{ y|length }}",
    ),
    (
        "appended levels, printed",
        "{% set ns = namespace(x=[]) %}{% set y = ns.x %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% endfor %}{{ y }}",
    ),
    (
        "appended levels, compared",
        "{% set ns = namespace(x=[], v=[]) %}{% set y = ns.x %}{% set w = ns.v %}{% for i in range(90000) %}{% set z = [] %}{% set _ = ns.x.append(z) %}{% set ns.x = z %}{% set z = [] %}{% set _ = ns.v.append(z) %}{% set ns.v = z %}{% endfor %}{{ y == w }}{{ [y, w]|sort|length }}{{ y in [w] }}",
    ),
    (
        "tool calls in loops",
        "{% for a in range(99999) %}{% for m in messages %}{% set x = m.tool_calls|tojson ~ tools|tojson %}{% endfor %}{% endfor %}",
    ),
    ("blocks in blocks", "{% block a %}{% block b %}{{ self.a() }}{% endblock %}{% endblock %}"),
    ("a block in itself", "{% block a %}{{ self.a() }}{% endblock %}"),
    ("include itself", "{% include 'chat template' %}{% import 'chat template' as x %}"),
    ("extend itself", "{% extends 'chat template' %}"),
    ("self", "{{ self }}{{ self._TemplateReference__context }}{{ self.__class__ }}"),
    (
        "attributes of Python",
        "{{ ''.__class__.__mro__ }}{{ x.__init__.__globals__ }}{{ [].__class__ }}{{ range.__class__ }}",
    ),
    (
        "places in a long text of other letters",
        "{% set x = 'é' * 400000 %}{% for i in range(99999) %}{% set y = x[i] ~ x[-i] ~ x[i:i + 2] ~ x[::9999] %}{% endfor %}",
    ),
    (
        "search in a long text of other letters",
        "{% set x = 'é' * 400000 %}{% for i in range(99999) %}{% set y = x.find('e', i) + x.count('é', i, i + 5) %}{% set z = x.startswith('é', i) %}{% endfor %}",
    ),
    (
        "letters of a long text of both writers",
        "{% set x = (messages[1].content ~ 'é') * 50000 %}{% for i in range(99999) %}{% set y = x[i] ~ x[i:] %}{% endfor %}",
    ),
    (
        "printing one list again and again",
        "{% set x = [[1] * 1000] * 1000 %}{% for i in range(99999) %}{% set y = x|string %}{% endfor %}",
    ),
    (
        "variables in deep scopes",
        "{% for a in range(99999) %}{% with %}{% with %}{% with %}{% with %}{% with %}{{ q }}{{ q1 }}{{ q2 }}{% endwith %}{% endwith %}{% endwith %}{% endwith %}{% endwith %}{% endfor %}",
    ),
];
