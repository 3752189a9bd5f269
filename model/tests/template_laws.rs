//! Laws of templates over random values and texts: `SEED=n` repeats a run, `FUZZ=n` makes it longer.

#![expect(clippy::print_stdout, reason = "a failure must say its seed")]

use fastrand::Rng;
use roadie_model::template::{Shape, Style, check, render};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

fn rng() -> Rng {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    Rng::with_seed(seed)
}

fn times(default: usize) -> usize {
    std::env::var("FUZZ").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

const PARTS: &[&str] = &[
    "a", "Z", "0", " ", "\n", "\r", "\t", "\"", "'", "\\", "%", "%n", "$", "${X}", "$(x)", "`", "#", "=", "[x]", ";", "\"\"\"",
    "'''", ",", "{{x}}", "}}", "\u{1b}", "\u{7f}", "\u{85}", "\u{202e}", "\u{2028}", "ü", "🦀", "\u{8}", "\\n", "-", "+", "@",
    "null", "<", "&",
];

fn text(rng: &mut Rng) -> String {
    (0..rng.usize(..8)).map(|_| *rng.choice(PARTS).expect("parts")).collect()
}

fn value(rng: &mut Rng, depth: usize) -> Value {
    match rng.u8(..if depth == 0 { 5 } else { 7 }) {
        0 => Value::Bool(rng.bool()),
        1 => rng.i64(..).into(),
        // serde_json reads longer ones back a last digit off.
        2 => json!(f64::from(rng.i32(..)) / 64.0),
        3 | 4 => text(rng).into(),
        5 => (0..rng.usize(..4)).map(|_| value(rng, depth - 1)).collect::<Vec<_>>().into(),
        _ => Value::Object((0..rng.usize(..4)).map(|_| (text(rng), value(rng, depth - 1))).collect::<Map<_, _>>()),
    }
}

#[test]
fn toml_and_json_give_the_value_back() {
    let mut rng = rng();
    for _ in 0..times(3000) {
        let value = value(&mut rng, 3);
        let context = json!({ "v": value });
        let written = render("# {{toml v}}\nv = {{toml v}}\n", Style::Toml, &context).expect("renders");
        assert_eq!(written.lines().count(), 2, "{written}");
        let back: toml::Table = toml::from_str(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
        assert_eq!(serde_json::to_value(&back).expect("JSON"), context, "{written}");
        let written = render("{{json v}}", Style::Plain, &context).expect("renders");
        assert_eq!(serde_json::from_str::<Value>(&written).expect("parses"), context["v"], "{written}");
        // Whatever a bare value is: it adds no key and no line.
        if let Ok(written) = render("a = \"{{v}}\"\nb = 1\n", Style::Toml, &context) {
            let back: toml::Table = toml::from_str(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
            assert_eq!(back.len(), 2, "{written}");
        }
    }
}

/// Wherever a tag stands: the keys of what comes out are those of the template, whatever the value is.
#[test]
fn no_value_adds_a_key() {
    const AROUND: &[&str] =
        &["\"", "'", "\"\"\"", "'''", "\n", " ", "\\", "# ", "a = ", "b = ", "{x = ", "}", "[", "]", ", ", "1", "y = ", "\"z\""];
    let (mut rng, mut compared) = (rng(), 0);
    for _ in 0..times(40_000) {
        let mut around = |n| (0..rng.usize(..n)).map(|_| *rng.choice(AROUND).expect("one")).collect::<String>();
        let tag = if around(2).is_empty() { "toml" } else { "json" };
        let open = ["a = ", "a = \"", "a = '", "a = '''", "a = \"\"\"", "a = {x = ", "# "][around(7).len() % 7];
        let template = format!("{open}{}{{{{{tag} v}}}}{}", around(4), around(6));
        let keys = |value: &str| {
            let written = render(&template, Style::Toml, &json!({ "v": value })).ok()?;
            let table: toml::Table = toml::from_str(&written).ok()?;
            let mut keys: Vec<String> = table.keys().cloned().collect();
            keys.extend(table.values().filter_map(|v| v.as_table()).flat_map(|t| t.keys().cloned()));
            // `[{{toml v}}]` asks for a key of that name: it is one, whatever it is called.
            keys.iter_mut().filter(|k| *k == value).for_each(|k| *k = "the value".into());
            keys.sort();
            Some((written, keys))
        };
        let Some((_, expected)) = keys("plain") else { continue };
        for hostile in
            ["\", b = \"y", "', b = '", "\nb = 1\n", "'''\nb = 1\n#", "\"\"\"\nb = 1\n#", "}\nb = {x = 1", "", "\"", "'", "\\"]
        {
            if let Some((written, keys)) = keys(hostile) {
                assert_eq!(keys, expected, "{template:?} became {written:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 0);
    println!("{compared} compared");
}

#[test]
fn a_shell_reads_the_same_bytes() {
    let mut rng = rng();
    let (mut script, mut expected) = (String::new(), String::new());
    for _ in 0..times(2000) {
        let value = text(&mut rng).replace('\0', "");
        let context = json!({ "v": value });
        script.push_str(&render("printf '%s\\0' x{{sh v}}y\n", Style::Plain, &context).expect("renders"));
        expected.push_str(&format!("x{value}y\0"));
    }
    let mut shell = Command::new("sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
    let mut input = shell.stdin.take().expect("stdin");
    let feeder = std::thread::spawn(move || input.write_all(script.as_bytes()).expect("written"));
    let output = shell.wait_with_output().expect("ends");
    feeder.join().expect("fed");
    assert_eq!(String::from_utf8(output.stdout).expect("UTF-8"), expected);
}

/// Words of a directive as systemd takes them apart: quotes, escapes; then specifiers, then variables.
fn words(line: &str, command: bool) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', _) => word.get_or_insert_default().push(chars.next().expect("something is escaped")),
            (c, Some(q)) if c == q => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "a quote is open in {line}");
    words.extend(word);
    let literal = |w: String| {
        let undone = |w: &str, sign: &str| {
            let parts: Vec<&str> = w.split(&sign.repeat(2)).collect();
            assert!(parts.iter().all(|p| !p.contains(sign)), "{w} has a live {sign}");
            parts.join(sign)
        };
        let w = undone(&w, "%");
        if command { undone(&w, "$") } else { w }
    };
    words.into_iter().map(literal).collect()
}

#[test]
fn systemd_reads_the_same_words() {
    let (mut rng, mut good) = (rng(), 0);
    for _ in 0..times(5000) {
        let value = text(&mut rng);
        let context = json!({ "v": value });
        let template = "ExecStart=/x {{unit v}} end\nEnvironment={{unit v}} end\nUser=u\n";
        match render(template, Style::Unit, &context) {
            Ok(written) => {
                assert_eq!(written.lines().count(), 3, "{written:?}");
                let lines: Vec<&str> = written.lines().collect();
                assert_eq!(words(&lines[0]["ExecStart=".len()..], true), ["/x", &value, "end"]);
                assert_eq!(words(&lines[1]["Environment=".len()..], false), [&value, "end"]);
                good += 1;
            }
            Err(problem) => assert!(value.chars().any(char::is_control), "{problem} {value:?}"),
        }
        // Bare: the same word, the same number of lines, or nothing.
        if let Ok(written) = render("ExecStart=/x a{{v}} end\nUser=u{{v}}\n{{v}}\n", Style::Unit, &context) {
            let lines: Vec<&str> = written.lines().collect();
            assert_eq!(words(&lines[0]["ExecStart=".len()..], true), ["/x", &format!("a{value}"), "end"]);
            assert!(lines.len() <= 3 && !lines.get(2).is_some_and(|l| l.contains('=')), "{written:?}");
        }
    }
    assert!(good > 100, "{good}");
}

#[test]
fn an_environment_file_gives_the_value_back() {
    let mut rng = rng();
    for _ in 0..times(3000) {
        let value = text(&mut rng);
        let written = render("{{env v}}", Style::Plain, &json!({ "v": value })).expect("renders");
        let inner = written.strip_prefix('"').and_then(|w| w.strip_suffix('"')).expect("quotes");
        let (mut back, mut chars) = (String::new(), inner.chars());
        while let Some(c) = chars.next() {
            assert!(!"\"$`".contains(c), "{written} has a live {c}");
            back.push(if c == '\\' { chars.next().expect("something is escaped") } else { c });
        }
        assert_eq!(back, value);
    }
}

const TAGS: &[&str] = &[
    "{{a}}",
    "{{b.c}}",
    "{{this}}",
    "{{this.c}}",
    "{{../a}}",
    "{{@root.a}}",
    "{{@index}}",
    "{{@key}}",
    "{{@first}}",
    "{{v}}",
    "{{k}}",
    "{{typo}}",
    "{{#if a}}",
    "{{#if typo}}",
    "{{#unless n}}",
    "{{#each xs}}",
    "{{#each b as |v k|}}",
    "{{#each ys as |v|}}",
    "{{#with b}}",
    "{{#with n}}",
    "{{else}}",
    "{{else if b}}",
    "{{/if}}",
    "{{/unless}}",
    "{{/each}}",
    "{{/with}}",
    "{{name}}",
    "{{~a~}}",
    "{{! x }}",
    "{{!-- }} --}}",
    " ",
    "\n",
    "\n",
    "  ",
    "x",
    "\\{{a}}",
    "\\\\{{a}}",
    "{{json b}}",
    "{{toml a}}",
    "{{xs.0}}",
    "{{#each @root.ys}}",
    "{{",
    "}}",
    "{{{a}}}",
    "{{> p}}",
    "{{#if (eq a 1)}}",
    "{{default n a}}",
    "{{#each b}}",
    "{{b.[c]}}",
    "\"",
    "'",
    "|",
    "(",
    ")",
    "[",
    "]",
    "é",
];

fn world() -> Value {
    json!({"a": "A", "b": {"c": "C", "d": 2}, "n": null, "xs": [1, 2], "ys": [{"name": "y"}, {"name": "z", "more": 1}], "e": []})
}

/// A text with blocks that are mostly closed.
fn template(rng: &mut Rng, wild: bool) -> String {
    let (mut text, mut open) = (String::new(), Vec::new());
    for _ in 0..rng.usize(..14) {
        let tag = *rng.choice(TAGS).expect("tags");
        let close = tag.starts_with("{{/") || tag.starts_with("{{else");
        if wild || !(close || tag == "{{") {
            text.push_str(tag);
        }
        if !wild {
            let name = tag.strip_prefix("{{#").map(|t| t.split([' ', '}']).next().unwrap_or_default());
            open.extend(name);
            if rng.u8(..4) == 0
                && let Some(name) = open.pop()
            {
                text.push_str(if rng.bool() { "{{else}}" } else { "" });
                text.push_str(&format!("-{{{{/{name}}}}}"));
            }
        }
    }
    open.into_iter().rev().for_each(|name| text.push_str(&format!("{{{{/{name}}}}}")));
    text
}

/// What passes the check has every name; and where the engine of handlebars fills it in as well, it comes to the same.
#[test]
fn what_is_checked_renders_and_as_handlebars_does() {
    let (mut rng, context, mut same) = (rng(), world(), 0);
    let shape = Shape::of(&context);
    let mut engine = handlebars::Handlebars::new();
    engine.set_strict_mode(true);
    engine.register_escape_fn(handlebars::no_escape);
    for _ in 0..times(20_000) {
        let text = template(&mut rng, false);
        let rendered = render(&text, Style::Plain, &context);
        if check(&text, Style::Plain, &shape).is_err() {
            continue;
        }
        if let Err(problem) = &rendered {
            let known = ["null", "no text", "beside one"];
            assert!(known.iter().any(|k| problem.problem.contains(k)), "{text:?}: {problem}");
        }
        // Theirs goes on taking blanks away from a `~}}` to behind the next comment; the others are not theirs.
        let quirk = text.contains("~}}") && text.contains("{{!");
        let unlike = quirk || ["toml", "json", "default", "xs.0"].iter().any(|w| text.contains(w));
        if let (Ok(rendered), false) = (rendered, unlike) {
            match engine.render_template(&text, &context) {
                Ok(theirs) => assert_eq!(rendered, theirs, "{text:?}"),
                // A `with` over null without an `else` is an error there; here it is what it is in handlebars: nothing.
                Err(e) => assert!(text.contains("with n") || text.contains("ys"), "{text:?}: {e}"),
            }
            same += 1;
        }
    }
    assert!(same > times(20_000) / 50, "only {same} were compared");
}

/// No text and no value makes it panic, and a broken text never renders.
#[test]
fn random_texts_never_panic() {
    let (mut rng, context) = (rng(), world());
    let shape = Shape::of(&context);
    for _ in 0..times(20_000) {
        let mut text = template(&mut rng, true);
        for _ in 0..rng.usize(..3) {
            let at = rng.usize(..=text.len());
            if text.is_char_boundary(at) {
                text.insert(
                    at,
                    *rng.choice(&['{', '}', '~', '#', '\\', '\u{202e}', '"', '[', '@', '.', '|', '\0']).expect("one"),
                );
            }
        }
        for style in [Style::Toml, Style::Unit, Style::Arg, Style::Plain] {
            let checked = check(&text, style, &shape);
            let rendered = render(&text, style, &context);
            if checked.is_ok() {
                assert!(rendered.as_ref().err().is_none_or(|p| p.problem != "is missing"), "{text:?} {rendered:?}");
            }
            if let Err(p) = &rendered {
                assert!(!p.to_string().chars().any(char::is_control), "{p}");
            }
        }
    }
}
