//! The `build` section.

use super::decode::{Fields, string};
use super::keys::{BUILD, BUILD_CARGO, BUILD_COMMAND, BUILD_IMAGE, BUILD_PREBUILT};
use super::problems::Problems;
use super::tree::{Kind, Node, printable};
use crate::definition::{Build, CargoBuild, ToolchainKind};
use crate::target::TargetTriple;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Clone, Copy)]
enum Type {
    Cargo,
    Prebuilt,
    Command,
    Image,
}

const TYPES: [(&str, Type); 4] =
    [("cargo", Type::Cargo), ("prebuilt", Type::Prebuilt), ("command", Type::Command), ("image", Type::Image)];

impl Type {
    fn name(self) -> &'static str {
        TYPES[self as usize].0
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Type::Cargo => BUILD_CARGO,
            Type::Prebuilt => BUILD_PREBUILT,
            Type::Command => BUILD_COMMAND,
            Type::Image => BUILD_IMAGE,
        }
    }
}

pub fn build(node: Option<&Node>, problems: &mut Problems) -> Build {
    let Some(fields) = node.and_then(|n| Fields::open(n, "`build`", BUILD, problems)) else { return unwritten() };
    // With a misspelt type nobody knows which keys belong.
    let Ok(kind) = fields.choice("type", &TYPES, problems) else { return unwritten() };
    let kind = kind.unwrap_or(Type::Cargo);
    refuse_foreign(&fields, kind, problems);
    let targets = targets(&fields, problems);
    match kind {
        Type::Cargo => cargo(&fields, targets, problems),
        Type::Prebuilt => prebuilt(&fields, targets, problems),
        Type::Command => Build::Command {
            run: fields.required("run", problems).unwrap_or_default(),
            inputs: fields.texts("inputs", problems),
            env: fields.texts("env", problems),
            output: fields.required("output", problems).unwrap_or_default().into(),
            targets,
        },
        Type::Image => Build::Image { image: fields.required("image", problems).unwrap_or_default() },
    }
}

/// `cargo` with nothing said.
fn unwritten() -> Build {
    Build::Cargo(CargoBuild {
        manifest_dir: PathBuf::from("."),
        default_features: true,
        profile: "release".into(),
        ..CargoBuild::default()
    })
}

fn cargo(fields: &Fields<'_>, targets: Vec<TargetTriple>, problems: &mut Problems) -> Build {
    let (toolchain, toolchains) = toolchain(fields, problems);
    Build::Cargo(CargoBuild {
        manifest_dir: fields.path("manifest_dir", problems).unwrap_or_else(|| PathBuf::from(".")),
        package: fields.text("package", problems),
        bins: bins(fields, problems),
        features: fields.texts("features", problems),
        default_features: fields.bool("default_features", problems).unwrap_or(true),
        profile: fields.text("profile", problems).unwrap_or_else(|| "release".into()),
        locked: fields.bool("locked", problems).unwrap_or(false),
        targets,
        toolchain,
        toolchains,
    })
}

fn bins(fields: &Fields<'_>, problems: &mut Problems) -> Vec<String> {
    if let (Some(_), Some((key, _))) = (fields.entry("bin"), fields.entry("bins")) {
        problems.add(key.place, "`bin` and `bins` cannot both stand", Some("put all of them under `bins`".to_owned()));
    }
    let mut bins = fields.texts("bins", problems);
    bins.extend(fields.text("bin", problems));
    bins
}

/// One word for all targets, or a map from target to word.
fn toolchain(fields: &Fields<'_>, problems: &mut Problems) -> (ToolchainKind, BTreeMap<TargetTriple, ToolchainKind>) {
    let mut by_target = BTreeMap::new();
    let Some(node) = fields.get("toolchain") else { return (ToolchainKind::Auto, by_target) };
    if !matches!(node.kind, Kind::Map(_)) {
        return (fields.choice("toolchain", &TOOLCHAINS, problems).ok().flatten().unwrap_or_default(), by_target);
    }
    for (key, value) in fields.entries_of("toolchain", problems) {
        let Some(word) = string(value, "toolchain", problems) else { continue };
        let kind = TOOLCHAINS.iter().find(|(name, _)| *name == word.text).map(|(_, kind)| *kind);
        match (TargetTriple::new(&key.name), kind) {
            (Ok(target), Some(kind)) => {
                by_target.insert(target, kind);
            }
            (Err(error), _) => problems.invalid(key.place, &printable(&key.name), &error),
            (_, None) => {
                let hint = format!("known here: {}", TOOLCHAINS.map(|(name, _)| name).join(", "));
                problems.add(value.place, format!("unknown toolchain `{}`", word.shown()), Some(hint));
            }
        }
    }
    (ToolchainKind::Auto, by_target)
}

const TOOLCHAINS: [(&str, ToolchainKind); 6] = [
    ("auto", ToolchainKind::Auto),
    ("cargo", ToolchainKind::Cargo),
    ("gcc", ToolchainKind::Gcc),
    ("zigbuild", ToolchainKind::Zigbuild),
    ("cross", ToolchainKind::Cross),
    ("build-std", ToolchainKind::BuildStd),
];

fn prebuilt(fields: &Fields<'_>, targets: Vec<TargetTriple>, problems: &mut Problems) -> Build {
    let path = fields.required("path", problems);
    if let (Some(path), Some(node)) = (&path, fields.get("path"))
        && targets.len() > 1
        && !path.contains("{target}")
    {
        let hint = Some("put `{target}` into it where the triple stands".to_owned());
        problems.add(node.place, "`path` is the same for several targets", hint);
    }
    Build::Prebuilt { path: path.unwrap_or_default().into(), targets }
}

/// A key that belongs to another build type.
fn refuse_foreign(fields: &Fields<'_>, kind: Type, problems: &mut Problems) {
    for name in BUILD.iter().filter(|k| **k != "type" && !kind.keys().contains(k)) {
        if let Some((key, _)) = fields.entry(name) {
            let message = format!("`{name}` does not belong to `type: {}`", kind.name());
            problems.add(key.place, message, Some(format!("it takes {}", kind.keys().join(", "))));
        }
    }
}

fn targets(fields: &Fields<'_>, problems: &mut Problems) -> Vec<TargetTriple> {
    if let (Some(_), Some((key, _))) = (fields.entry("target"), fields.entry("targets")) {
        let hint = "put all of them under `targets`".to_owned();
        problems.add(key.place, "`target` and `targets` cannot both stand", Some(hint));
    }
    let mut targets = Vec::new();
    for (name, node) in ["target", "targets"].iter().flat_map(|n| fields.list(n).iter().map(move |node| (n, node))) {
        let Some(text) = string(node, name, problems) else { continue };
        match TargetTriple::new(&text.text) {
            Ok(target) if targets.contains(&target) => {
                problems.add(node.place, format!("target `{}` stands twice", text.shown()), None);
            }
            Ok(target) => targets.push(target),
            Err(error) => problems.invalid(node.place, &text.shown(), &error),
        }
        if targets.len() > MOST_TARGETS {
            problems.add(node.place, format!("more than {MOST_TARGETS} targets"), None);
            break;
        }
    }
    targets
}

/// More than Rust has.
const MOST_TARGETS: usize = 400;
