//! Overlay and `${VAR}`: tree to tree.

use super::decode::Problems;
use super::tree::{Kind, Node, Place};

/// Keys whose text is for a shell: it expands variables itself, on the machine where it runs.
const SHELL_KEYS: [&str; 3] = ["setup_commands", "run", "exec"];

/// Lays `over` over `base`: maps key by key, anything else is replaced, nothing (`null`) removes.
pub fn merge(base: Node, over: Node) -> Node {
    let Node { place, kind } = over;
    match (base.kind, kind) {
        (Kind::Map(mut entries), Kind::Map(changes)) => {
            for (key, value) in changes {
                let at = entries.iter().position(|(k, _)| k.name == key.name);
                match (at, &value.kind) {
                    (Some(at), Kind::Null) => {
                        entries.remove(at);
                    }
                    (Some(at), _) => {
                        let (old_key, old) = entries.remove(at);
                        entries.insert(at, (old_key, merge(old, value)));
                    }
                    (None, Kind::Null) => {}
                    (None, _) => entries.push((key, value)),
                }
            }
            Node { place: base.place, kind: Kind::Map(entries) }
        }
        // An overlay with nothing in it changes nothing.
        (kind @ Kind::Map(_), Kind::Null) => Node { place: base.place, kind },
        (_, kind) => Node { place, kind },
    }
}

/// Fills `${VAR}` into all text but that of shells.
pub fn interpolate(node: &mut Node, env: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) {
    let place = node.place;
    match &mut node.kind {
        Kind::Plain(text) | Kind::Text(text) if text.contains("${") => {
            node.kind = Kind::Filled(expand(text, place, env, problems));
        }
        Kind::Plain(text) | Kind::Text(text) if text.contains('$') => *text = expand(text, place, env, problems),
        Kind::Plain(_) | Kind::Text(_) | Kind::Filled(_) => {}
        Kind::List(items) => items.iter_mut().for_each(|item| interpolate(item, env, problems)),
        Kind::Map(entries) => {
            for (key, value) in entries {
                if !SHELL_KEYS.contains(&key.name.as_str()) && !key.name.starts_with("x-") {
                    interpolate(value, env, problems);
                }
            }
        }
        Kind::Null => {}
    }
}

fn expand(text: &str, place: Place, env: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some(end) = after.find('}') else {
                problems.add(place, "`${` without `}`", Some("write `$$` for a dollar sign".into()));
                return result;
            };
            result.push_str(&variable(&after[..end], place, env, problems));
            rest = &after[end + 1..];
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    result
}

fn variable(text: &str, place: Place, env: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) -> String {
    let (name, default, complaint) = match (text.split_once(":-"), text.split_once(":?")) {
        (Some((name, default)), _) => (name, Some(default), None),
        (None, Some((name, complaint))) => (name, None, Some(complaint)),
        (None, None) => (text, None, None),
    };
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        problems.add(place, &format!("`${{{text}}}` names no variable"), Some("write `$$` for a dollar sign".into()));
        return String::new();
    }
    let value = env(name);
    match (value.filter(|v| !v.is_empty() || (default.is_none() && complaint.is_none())), default, complaint) {
        (Some(value), ..) => {
            problems.hide(name, &value);
            value
        }
        (None, Some(default), _) => default.to_owned(),
        (None, None, Some(complaint)) => {
            problems.add(place, &format!("variable `{name}` is not set: {complaint}"), None);
            String::new()
        }
        (None, None, None) => {
            let hint = format!("set it, or write `${{{name}:-default}}`");
            problems.add(place, &format!("variable `{name}` is not set"), Some(hint));
            String::new()
        }
    }
}
