//! What a plan changes in the texts of a release, as unified diffs, with no value of the environment in them.

use roadie_model::facts::Texts;
use roadie_model::plan::{Change, Rendered, SecretText};
use similar::TextDiff;
use std::collections::BTreeMap;

/// Values shorter than this are no secrets, and would be found everywhere.
const LEAST_SECRET: usize = 4;

/// Compares what is in service with what will be: unit, config, and the names of the environment.
pub fn changes(current: &Texts, new: &Rendered) -> Vec<Change> {
    let text = |t: &Option<SecretText>| t.as_ref().map(|t| t.reveal().to_owned()).unwrap_or_default();
    let (old_env, new_env) = (parse_env(&text(&current.env)), parse_env(new.env.reveal()));
    let mut secrets: Vec<(&str, &str)> = old_env.iter().chain(&new_env).map(|(k, v)| (k.as_str(), v.as_str())).collect();
    secrets.retain(|(_, value)| value.len() >= LEAST_SECRET);
    // The longest first: one value may be part of another.
    secrets.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    let hidden = |text: &str| redact(text, &secrets);
    let names = |env: &BTreeMap<String, String>, other: &BTreeMap<String, String>, mark: &str| {
        let line = |(key, value): (&String, &String)| match other.get(key) {
            Some(same) if same == value => format!("{key}\n"),
            Some(_) => format!("{key} ({mark} value)\n"),
            None => format!("{key}\n"),
        };
        env.iter().map(line).collect::<String>()
    };
    [
        ("unit", text(&current.unit), new.unit.clone()),
        ("config.toml", hidden(&text(&current.config)), hidden(new.config.reveal())),
        ("environment", names(&old_env, &new_env, "old"), names(&new_env, &old_env, "new")),
    ]
    .into_iter()
    .filter_map(|(name, old, new)| change(name, &old, &new))
    .collect()
}

fn change(name: &str, old: &str, new: &str) -> Option<Change> {
    // A new release id in the unit is no change of the unit.
    let without_id =
        |text: &str| text.lines().filter(|l| !l.contains("ROADIE_RELEASE=")).map(|l| format!("{l}\n")).collect::<String>();
    let (old, new) = (without_id(old), without_id(new));
    let diff = TextDiff::from_lines(old.as_str(), new.as_str());
    let header = (format!("{name} (on the host)"), format!("{name} (new)"));
    let text = diff.unified_diff().context_radius(2).header(&header.0, &header.1).to_string();
    (old != new).then(|| Change { name: name.to_owned(), diff: text })
}

/// Puts `<env.KEY>` where a value stands, as it is or as it stands in JSON and TOML strings.
fn redact(text: &str, secrets: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    for (key, value) in secrets {
        let escaped = serde_json::Value::from(*value).to_string();
        for form in [*value, escaped.trim_matches('"')] {
            text = text.replace(form, &format!("<env.{key}>"));
        }
    }
    text
}

/// Reads back what [`crate::render`] wrote: `KEY="value"`, a backslash before `"`, `\`, a backtick and `$`.
fn parse_env(text: &str) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let mut end = after.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.extend(chars.next().map(|(_, c)| c)),
                '"' => {
                    end = at + 1;
                    break;
                }
                c => value.push(c),
            }
        }
        env.insert(key.trim_start_matches('\n').to_owned(), value);
        rest = &after[end..];
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(unit: &str, config: &str, env: &str) -> Rendered {
        Rendered {
            unit: unit.into(),
            config: SecretText::new(config),
            env: SecretText::new(env),
            run: SecretText::default(),
            health: String::new(),
            lifecycle: String::new(),
            manifest: String::new(),
        }
    }

    fn texts(unit: &str, config: &str, env: &str) -> Texts {
        let text = |t: &str| Some(SecretText::new(t));
        Texts { unit: text(unit), config: text(config), env: text(env) }
    }

    #[test]
    fn no_value_of_the_environment_is_in_a_diff() {
        let old = texts(
            "a\nEnvironment=ROADIE_RELEASE=1\n",
            "key = \"old-secret\"\nlevel = \"info\"\n",
            "KEY=\"old-secret\"\nGONE=\"x\"\n",
        );
        let new = rendered(
            "a\nEnvironment=ROADIE_RELEASE=2\n",
            "key = \"n\\\"w\\\\secret\"\nlevel = \"warn\"\n",
            "KEY=\"n\\\"w\\\\secret\"\nMORE=\"1\"\n",
        );
        let changes = changes(&old, &new);
        let text: String = changes.iter().map(|c| c.diff.as_str()).collect();
        assert_eq!(changes.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["config.toml", "environment"], "{text}");
        assert!(!text.contains("secret"), "{text}");
        for line in [
            " key = \"<env.KEY>\"",
            "-level = \"info\"",
            "+level = \"warn\"",
            "-GONE",
            "-KEY (old value)",
            "+KEY (new value)",
            "+MORE",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }

    #[test]
    fn the_environment_is_read_back_as_it_was_written() {
        let env = parse_env("A=\"a b\\\"c'd\\$e%f\\\\\"\nB=\"two\nlines\"\nC=\"\"\n");
        let expected = [("A", "a b\"c'd$e%f\\"), ("B", "two\nlines"), ("C", "")];
        assert_eq!(env, expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
    }
}
