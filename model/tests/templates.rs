//! Hostile templates and values, each with exactly what becomes of it.

use roadie_model::template::{Shape, Style, check, render};
use serde_json::{Value, json};
use std::collections::BTreeMap;

use Style::{Arg, Plain, Toml, Unit};

fn vars() -> Value {
    json!({
        "plain": "127.0.0.1:8080", "space": "a b", "line": "x\nExecStartPre=/bin/evil", "cr": "x\rExecStartPre=/bin/evil",
        "esc": "\u{1b}[2J", "nul": "a\0b", "percent": "%n", "dollar": "$HOME ${HOME} $(reboot)", "quote": "a\"b'c", "slash": "x\\",
        "nil": null, "empty": "", "yes": true, "no": false, "int": 8080, "float": 1.5, "big": 18_446_744_073_709_551_615u64,
        "html": "<a href=\"x\">&'</a>", "bidi": "a\u{202e}b", "separator": "a\u{2028}b", "key": "x\", b = \"y", "tick": "', b = '",
        "directive": "ExecStartPre=/bin/evil", "section": "[Service]", "sign": "+/bin/evil", "semicolon": "; /bin/evil",
        "comment": "1 # x", "umlaut": "Grüße", "list": [1, "two"], "nothing": [], "map": {"a": 1, "b c": "x\ny"}, "none": {},
        "people": [{"name": "ann", "age": 1}, {"name": "bob"}], "sparse": {"a": null}, "exec": "/bin/x \"a b\"", "service": "api",
        "root": "/opt/roadie/api", "home": "/home/a b"
    })
}

enum Outcome {
    /// The text that comes out.
    Text(&'static str),
    /// What the check says, before there are values: place, path, problem, hint in part.
    Checked(&'static str),
    /// What only a value shows.
    Refused(&'static str),
}
use Outcome::{Checked, Refused, Text};

const CASES: &[(Style, &str, Outcome)] = &[
    // Values that would add a line, a key, a directive or a command.
    (Unit, "ExecStart=/x {{line}}\n", Refused("line 1, column 16: `line` has a control character")),
    (Unit, "ExecStart=/x {{unit line}}\n", Refused("`line` has a control character, which a unit cannot carry")),
    (Unit, "ExecStart=/x {{cr}}\n", Refused("`cr` has a control character")),
    (Unit, "ExecStart=/x {{percent}}\n", Refused("`percent` has characters that mean something here")),
    (Unit, "ExecStart=/x {{unit percent}}\n", Text("ExecStart=/x \"%%n\"\n")),
    (Unit, "ExecStart=/x {{dollar}}\n", Refused("`dollar` has characters that mean something here")),
    (Unit, "ExecStart=/x {{unit dollar}}\n", Text("ExecStart=/x \"$$HOME $${HOME} $$(reboot)\"\n")),
    (Unit, "Environment={{unit dollar}}\n", Text("Environment=\"$HOME ${HOME} $(reboot)\"\n")),
    (Unit, "ExecStart=/x {{unit quote}}\n", Text("ExecStart=/x \"a\\\"b'c\"\n")),
    (Unit, "Environment=A={{slash}}\nUser=x\n", Refused("`slash` has characters that mean something here")),
    (Unit, "Description={{slash}}\nUser=x\n", Refused("`slash` has characters that mean something here")),
    (Unit, "Description={{unit slash}}\n", Refused("`slash` has a backslash or blanks at an end")),
    (Unit, "ExecStart=/x {{unit slash}}\n", Text("ExecStart=/x \"x\\\\\"\n")),
    (Unit, "{{directive}}\n", Refused("`directive` has characters that mean something here")),
    (Unit, "{{unit directive}}\n", Refused("`unit` stands before the `=` of its line")),
    (Unit, "{{section}}\n", Refused("`section` has characters that mean something here")),
    (Unit, "ExecStart={{sign}}\n", Refused("`sign` has characters that mean something here")),
    (Unit, "ExecStart={{unit sign}}\n", Refused("`unit` would begin a command line with a sign")),
    (Unit, "ExecStart=/x {{semicolon}}\n", Refused("`semicolon` has characters that mean something here")),
    (Unit, "ExecStart=/x {{unit semicolon}}\n", Text("ExecStart=/x \"; /bin/evil\"\n")),
    (Unit, "ExecStart=/bin/sh -c \"echo {{unit space}}\"\n", Refused("`unit` stands inside of quotes")),
    (
        Unit,
        "ExecStart=/bin/sh -c 'x' \\\n  {{unit dollar}}\n",
        Text("ExecStart=/bin/sh -c 'x' \\\n  \"$$HOME $${HOME} $$(reboot)\"\n"),
    ),
    (Unit, "ExecStart=/bin/sh -c \"x \\\n  {{unit space}}\"\n", Refused("`unit` stands inside of quotes")),
    (Unit, "ExecStart=/x {{space}}\n", Refused("`space` has characters that mean something here")),
    (Unit, "Description={{space}}\n", Text("Description=a b\n")),
    (Unit, "WorkingDirectory={{home}}\n", Text("WorkingDirectory=/home/a b\n")),
    (Unit, "Description={{percent}}\n", Refused("`percent` has characters that mean something here")),
    (Unit, "Description={{unit percent}}\n", Text("Description=%%n\n")),
    (Unit, "ExecStart={{exec}}\n", Text("ExecStart=/bin/x \"a b\"\n")),
    (Unit, "Environment={{exec}}\n", Refused("`exec` stands where no command line can")),
    (Unit, "ExecStart=/x {{sh space}}\n", Checked("1:16 sh does not fit this kind of text [in a unit write `{{unit (sh x)}}`]")),
    (Unit, "ExecStart=/x {{unit (sh space)}}\n", Text("ExecStart=/x \"'a b'\"\n")),
    (Unit, "ExecStart=/x {{unit list}}\n", Checked("1:21 list is a list, and `unit` writes one value [write its elements")),
    (Toml, "a = {{key}}\n", Refused("`key` has characters that mean something here")),
    (Toml, "a = \"{{key}}\"\n", Refused("`key` has characters that mean something here")),
    (Toml, "a = {{toml key}}\n", Text("a = \"x\\\", b = \\\"y\"\n")),
    (Toml, "a = {x = \"{{toml tick}}\"}\n", Refused("`toml` stands inside of quotes")),
    (Toml, "a = {x = \"p {{toml tick}} q\"}\n", Refused("`toml` stands inside of quotes")),
    (Toml, "a = 'p {{json tick}} q'\n", Refused("`json` stands inside of quotes")),
    (Toml, "a = \"\"\"\n\\\"\"\" {{toml tick}} q\"\"\"\n", Refused("`toml` stands inside of quotes")),
    (Toml, "a = '''\nx {{toml tick}}'''\n", Refused("`toml` stands inside of quotes")),
    (Toml, "a = \"x\" # '\nb = {{toml tick}}\n", Text("a = \"x\" # '\nb = \"', b = '\"\n")),
    (Toml, "a = {{toml empty}}\"x\n", Refused("`toml` stands inside of quotes or beside one")),
    (Toml, "# {{toml line}}\n", Text("# \"x\\nExecStartPre=/bin/evil\"\n")),
    (Toml, "# {{line}}\n", Refused("`line` has a control character")),
    (Toml, "a = {{comment}}\n", Refused("`comment` has characters that mean something here")),
    (Toml, "a = \"{{slash}}\"\n", Refused("`slash` has characters that mean something here")),
    (Toml, "a = \"{{plain}}\" # {{int}} {{float}} {{yes}}\n", Text("a = \"127.0.0.1:8080\" # 8080 1.5 true\n")),
    (Toml, "a = {{toml map}}\n", Text("a = { a = 1, \"b c\" = \"x\\ny\" }\n")),
    (Toml, "a = {{toml nil}}\n", Refused("`nil` is or has null in it")),
    (Toml, "a = {{toml sparse}}\n", Refused("`sparse` is or has null in it")),
    (Toml, "a = {{toml big}}\n", Refused("`big` has a number that is too large for TOML")),
    (Toml, "a = {{sh plain}}\n", Checked("1:7 sh does not fit this kind of text [in TOML write `{{toml (sh x)}}`]")),
    (Toml, "a = {{toml (json map)}}\n", Text("a = \"{\\\"a\\\":1,\\\"b c\\\":\\\"x\\\\ny\\\"}\"\n")),
    (Toml, "a = {{toml bidi}}\n", Text("a = \"a\\u202Eb\"\n")),
    (Arg, "--x={{line}}", Refused("`line` has a control character")),
    (Arg, "echo {{sh dollar}}", Text("echo '$HOME ${HOME} $(reboot)'")),
    (Arg, "echo {{sh quote}}", Text("echo 'a\"b'\\''c'")),
    (Arg, "echo \"{{sh dollar}}\"", Refused("`sh` stands inside of quotes")),
    (Arg, "echo 'x {{sh dollar}}'", Refused("`sh` stands inside of quotes")),
    (Arg, "{{sh nul}}", Refused("`nul` has a NUL character")),
    (Arg, "{{unit space}}", Checked("1:3 unit does not fit this kind of text [roadie quotes the whole argument itself")),
    (Arg, "{{space}} {{percent}} {{html}}", Text("a b %n <a href=\"x\">&'</a>")),
    (Plain, "{{html}} {{umlaut}}", Text("<a href=\"x\">&'</a> Grüße")),
    (Plain, "{{esc}}", Refused("`esc` has a control character")),
    (Plain, "{{bidi}}", Refused("`bidi` has a control character or one that hides others")),
    (Plain, "{{separator}}", Refused("`separator` has a control character or one that hides others")),
    (Plain, "{{json bidi}}", Text("\"a\\u202eb\"")),
    (Plain, "{{env dollar}}", Text("\"\\$HOME \\${HOME} \\$(reboot)\"")),
    (Plain, "{{env nul}}", Refused("`nul` has a NUL character")),
    // Null, and what is no text.
    (Plain, "{{nil}}", Refused("`nil` is null")),
    (Plain, "{{#if nil}}{{nil}}{{else}}no{{/if}}", Text("no")),
    (Plain, "{{default nil \"x\"}}", Text("x")),
    (Plain, "{{json null}} {{json nil}}", Text("null null")),
    (Plain, "{{sh nil}}", Refused("`nil` is null")),
    (Plain, "{{list}}", Checked("1:3 list is a list, and no text [write `{{json list}}`")),
    (Plain, "{{map}}", Checked("1:3 map is a map, and no text")),
    (Plain, "{{#each nil}}x{{else}}y{{/each}}", Refused("`nil` is null")),
    (Plain, "{{#each plain}}x{{/each}}", Checked("1:9 plain is neither a list nor a map")),
    // Names that are not there, in every position.
    (Plain, "{{palin}}", Checked("1:3 palin is not declared [did you mean `plain`?]")),
    (Plain, "x\n  {{#if plian}}x{{/if}}", Checked("2:9 plian is not declared [did you mean `plain`?]")),
    (Plain, "{{#unless typo}}x{{/unless}}", Checked("1:11 typo is not declared [declare it under `vars`]")),
    (Plain, "{{#each typo}}x{{else}}y{{/each}}", Checked("1:9 typo is not declared")),
    (Plain, "{{#with typo}}x{{/with}}", Checked("1:9 typo is not declared")),
    (Plain, "{{#if no}}{{typo}}{{/if}}", Checked("1:13 typo is not declared")),
    (Plain, "{{#if yes}}x{{else if typo}}y{{/if}}", Checked("1:23 typo is not declared")),
    (Plain, "{{#if (and yes (eq typo 1))}}x{{/if}}", Checked("1:20 typo is not declared")),
    (Plain, "{{default typo 1}}", Checked("1:11 typo is not declared")),
    (Plain, "{{map.c}}", Checked("1:3 map.c is not declared")),
    (Plain, "{{plain.x}}", Checked("1:3 plain.x is not declared [`plain` has no keys]")),
    (Plain, "{{#each people}}{{name}} {{this.name}},{{/each}}", Text("ann ann,bob bob,")),
    (Plain, "{{#each people}}{{age}}{{/each}}", Checked("1:19 age is not declared")),
    (
        Plain,
        "{{#each people}}{{service}}{{/each}}",
        Checked("1:19 service is not declared [inside of `{{#each}}` and `{{#with}}` write `@root.service`]"),
    ),
    (Plain, "{{#each people}}{{../service}}{{@root.service}}{{/each}}", Text("apiapiapiapi")),
    (Plain, "{{#each people as |p i|}}{{i}}{{p.name}}{{/each}}", Text("0ann1bob")),
    (Plain, "{{#each people as |p|}}{{p.nane}}{{/each}}", Checked("1:26 p.nane is not declared [did you mean `name`?]")),
    (Plain, "{{#each map as |v k|}}{{k}}={{json v}}{{#unless @last}},{{/unless}}{{/each}}", Text("a=1,b c=\"x\\ny\"")),
    (Plain, "{{#each nothing}}{{this.any}}{{else}}none{{/each}}", Text("none")),
    (Plain, "{{#with map}}{{a}}{{../plain}}{{/with}}", Text("1127.0.0.1:8080")),
    (Plain, "{{map.[b c]}}", Refused("`map.[b c]` has a control character")),
    (Plain, "{{people.1.name}}{{people.[0].name}}", Text("bobann")),
    (Plain, "{{people.2.name}}", Checked("1:3 people.2.name is not declared")),
    (Plain, "{{../plain}}", Checked("1:3 ../plain goes above the whole template")),
    (Plain, "{{#each list}}{{../../plain}}{{/each}}", Checked("1:17 ../../plain goes above the whole template")),
    (Plain, "{{@root.typo}}", Checked("1:3 @root.typo is not declared")),
    (Plain, "{{@index}}", Checked("1:3 @index stands outside of an `{{#each}}`")),
    (Plain, "{{#each list}}{{@key}}{{/each}}", Checked("1:17 @key is not there in a list")),
    (Plain, "{{#each list}}{{@../index}}{{/each}}", Checked("1:17 @../index stands outside of an `{{#each}}`")),
    (Plain, "{{#each list}}{{@foo}}{{/each}}", Checked("1:17 @foo is not known")),
    (Plain, "{{this}}", Checked("1:3 this is a map, and no text")),
    (Plain, "{{toml}}", Checked("1:3 toml is not declared [the helper takes a value: `{{toml x}}`]")),
    // What the language does not have.
    (Plain, "{{> other}}", Checked("1:1 {{> other}} names a partial")),
    (Plain, "{{#> other}}x{{/other}}", Checked("1:1 {{#> other}} names a partial")),
    (Plain, "{{* inline \"x\"}}", Checked("1:1 {{* inline \"x\"}} is a decorator")),
    (Plain, "{{{html}}}", Checked("1:1 {{{html}}} writes a value raw")),
    (Plain, "{{&html}}", Checked("1:1 {{&html}} writes a value raw")),
    (Plain, "{{{{shout}}}}x{{{{/shout}}}}", Checked("1:1 {{{{shout}}}} is a raw block of a name that there is not")),
    (Plain, "{{{{raw}}}}{{x}} {{{{/raw}}}}", Text("{{x}} ")),
    (Plain, "{{shout plain}}", Checked("1:3 shout is not a helper [helpers are `toml`, `json`")),
    (Plain, "{{lookup map \"a\"}}", Checked("1:3 lookup is not a helper")),
    (Plain, "{{#shout}}x{{/shout}}", Checked("1:1 shout is not a block")),
    (Plain, "{{#if no includeZero=true}}x{{/if}}", Checked("1:10 includeZero is one value too many")),
    (Plain, "{{json plain x=typo}}", Checked("1:15 json plain x=typo has an option")),
    (Plain, "{{toml plain int}}", Checked("1:3 toml takes 1 values, not 2")),
    (Plain, "{{a\u{202e}b}}", Checked("1:3 a\\u{202e}b is not a path")),
    (Plain, "{{#if yes}}x", Checked("1:1 {{#if}} is not closed")),
    (Plain, "{{#if yes}}x{{/each}}", Checked("1:13 each closes a block that is open as `if`")),
    (Plain, "x{{/if}}", Checked("1:2 if closes a block that is not open")),
    (Plain, "{{else}}", Checked("1:1 else stands outside of a block")),
    (Plain, "{{plain", Checked("1:1 {{plain is not closed")),
    (Plain, "{{}}", Checked("1:1  is an empty tag")),
    (Plain, "\\{{plain}} \\\\{{plain}} ${VAR}", Text("{{plain}} \\127.0.0.1:8080 ${VAR}")),
    (Plain, "{{! {{plain }}x{{!-- }} --}}y", Text("xy")),
    (Plain, "a\n  {{#if yes}}\n  b\n  {{else}}\n  c\n  {{/if}}\nd {{~int~}}  e", Text("a\n  b\nd8080e")),
];

fn said(text: &str, style: Style, shape: &Shape) -> Vec<String> {
    let problems = check(text, style, shape).err().unwrap_or_default();
    problems.iter().map(|p| format!("{}:{} {} {} [{}]", p.line, p.column, p.path, p.problem, p.hint)).collect()
}

#[test]
fn hostile_templates_and_values() {
    let (context, mut wrong) = (vars(), Vec::new());
    let shape = Shape::of(&context);
    for (style, text, outcome) in CASES {
        let checked = said(text, *style, &shape);
        let rendered = render(text, *style, &context).map_err(|p| p.to_string());
        let good = match outcome {
            Text(expected) => checked.is_empty() && rendered.as_deref() == Ok(*expected),
            Checked(expected) => checked.len() == 1 && checked[0].starts_with(expected),
            Refused(expected) => checked.is_empty() && rendered.as_ref().is_err_and(|e| e.contains(expected)),
        };
        if !good {
            wrong.push(format!("{text:?}\n  check: {checked:?}\n  render: {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    assert!(CASES.len() >= 40);
}

/// No problem shows a value: it may be a secret.
#[test]
fn problems_do_not_show_values() {
    let context = json!({"a": "s3cret\n", "b": {"s3cret": 1}, "c": ["s3cret"]});
    for style in [Toml, Unit, Arg, Plain] {
        for text in ["x={{a}}", "x={{b}}", "x={{c}}", "x={{unit a}}", "x={{sh b}}", "{{#each a}}{{/each}}", "x={{b.x}}"] {
            let mut all = said(text, style, &Shape::of(&context));
            all.extend(render(text, style, &context).err().map(|p| format!("{p} {}", p.hint)));
            assert!(!all.is_empty() || style == Plain || style == Arg, "{text}");
            assert!(all.iter().all(|p| !p.contains("s3cret\n") && (text.contains("b.x") || !p.contains("s3cret"))), "{all:?}");
        }
    }
}

#[test]
fn all_mistakes_are_told_in_their_order() {
    let found = said("{{b}}\n{{a}} {{#if c}}{{d}}{{/if}}\n", Plain, &Shape::Map(BTreeMap::new()));
    let paths: Vec<&str> = found.iter().map(|p| p.split(" is").next().unwrap_or_default()).collect();
    assert_eq!(paths, ["1:3 b", "2:3 a", "2:13 c", "2:18 d"]);
}

/// Nesting without end, long texts and loops in loops end in a sentence.
#[test]
fn size_has_its_limits() {
    let context = json!({"xs": vec![0; 2000], "x": 1});
    let shape = Shape::of(&context);
    let deep = "{{#if x}}".repeat(100_000);
    let parens = format!("{{{{#if {}x}}}}{{{{/if}}}}", "(not ".repeat(100_000));
    let long = "x".repeat(2 << 20);
    for (text, expected) in [(&deep, "deep"), (&parens, "too deep"), (&long, "longer than 1 MiB")] {
        let found = said(text, Plain, &shape);
        assert!(found.iter().any(|p| p.contains(expected)) && found.len() <= 100, "{found:?}");
        assert!(render(text, Plain, &context).is_err());
    }
    let turns = "{{#each xs}}{{#each ../xs}}{{#each ../../xs}}{{/each}}{{/each}}{{/each}}";
    let many = turns.replace("{{#each ../../xs}}", "{{#each ../../xs}}y");
    assert!(render(turns, Plain, &context).is_err_and(|p| p.problem.contains("a million turns")));
    assert!(render(&many, Plain, &context).is_err_and(|p| p.problem.contains("4 MiB")));
}
