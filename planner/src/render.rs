//! Templates filled in for one host: unit, config, environment, start script; and the release id over all of them.

use roadie_model::definition::{Host, Lifecycle, RuntimeKind, Scope, Service};
use roadie_model::facts::HostFacts;
use roadie_model::id::ReleaseId;
use roadie_model::package::Package;
use roadie_model::plan::{Rendered, SecretText};
use roadie_model::sh;
use roadie_model::template::{self, Style, TemplateProblem};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Stands for the release id while the id is not known: the id is a digest over texts that name it.
const RELEASE_PLACEHOLDER: &str = "@ROADIE-RELEASE@";

/// Why a template could not be filled in.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template names something that is not there, is malformed, or a value does not fit its place.
    #[error("cannot render {what}: {problem}")]
    Template {
        /// Which text: `config-template.toml`, `systemd.service`, `deploy.args[2]`.
        what: String,
        /// Where in it, the path, and what is wrong.
        problem: TemplateProblem,
    },
    /// A value would break out of its line.
    #[error("{what} contains a control character")]
    ControlCharacter {
        /// Which value.
        what: String,
    },
    /// The rendered config is not TOML although its name says so.
    #[error("the rendered config is not valid TOML: {0}")]
    Toml(String),
}

impl RenderError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            RenderError::Template { problem, .. } => problem.hint.clone(),
            RenderError::ControlCharacter { .. } => "take line breaks and other control characters out of the value".into(),
            RenderError::Toml(_) => "write values as `{{toml x}}`, without quotes around it".into(),
        }
    }
}

/// Folder of a service on a host: what `{{root}}` is.
pub fn service_root(service: &Service, home: &str) -> String {
    match (service.runtime, service.deploy.scope) {
        (RuntimeKind::Remote, Scope::System) => format!("/opt/roadie/{}", service.name),
        _ => format!("{home}/.local/share/roadie/{}", service.name),
    }
}

/// Renders everything of a release for one host and computes its id.
///
/// # Errors
/// [`RenderError`] naming the text and the value.
pub fn render(
    service: &Service,
    host: &Host,
    package: &Package,
    facts: &HostFacts,
) -> Result<(ReleaseId, Rendered), RenderError> {
    let root = &facts.root;
    let context = template::context(service, host, facts);
    let style = service.config.as_deref().map_or(Style::Plain, template::config_style);
    let config = fill("config-template.toml", &package.config_template, style, &context)?;
    if style == Style::Toml {
        toml::from_str::<toml::Table>(&config).map_err(|e| RenderError::Toml(e.message().to_owned()))?;
    }
    let argv = argv(service, package, root, &context)?;
    let variables = environment(service);
    let env = env_file(&variables)?;
    let unit = if service.deploy.lifecycle == Lifecycle::Systemd {
        let context = template::unit_context(service, host, facts, &exec_line(&argv)?, RELEASE_PLACEHOLDER);
        fill("systemd.service", &package.unit_template, Style::Unit, &context)?
    } else {
        String::new()
    };
    let run = run_script(&variables, root, &argv);
    let health = serde_json::to_string(&service.deploy.health).unwrap_or_default();

    let id = release_id(&[package.id.as_str(), lifecycle(service), &unit, &config, &env, &run]);
    let unit = unit.replace(RELEASE_PLACEHOLDER, id.as_str());
    let mut rendered = Rendered {
        unit,
        config: SecretText::new(config),
        env: SecretText::new(env),
        run: SecretText::new(run),
        health,
        lifecycle: lifecycle(service).to_owned(),
        manifest: String::new(),
    };
    rendered.manifest = manifest(&rendered, package_files(package));
    Ok((id, rendered))
}

/// The word that the host script knows the lifecycle by.
fn lifecycle(service: &Service) -> &'static str {
    match service.deploy.lifecycle {
        Lifecycle::Systemd => "systemd",
        Lifecycle::Simple => "simple",
    }
}

pub(crate) fn release_id(parts: &[&str]) -> ReleaseId {
    let mut hash = Sha256::new();
    hash.update(b"roadie-release/1\n");
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    ReleaseId::new(hex(&hash.finalize())).unwrap_or_else(|_| unreachable!("a sha256 in hex is a release id"))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

pub(crate) fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Checks all of a template, also what would not be reached, and fills it in.
fn fill(what: &str, text: &str, style: Style, context: &Value) -> Result<String, RenderError> {
    let wrong = |problem| RenderError::Template { what: what.to_owned(), problem };
    if let Err(problems) = template::check(text, style, &template::Shape::of(context)) {
        return Err(problems.into_iter().next().map_or_else(|| unreachable!("a failed check has a problem"), wrong));
    }
    template::render(text, style, context).map_err(wrong)
}

fn argv(service: &Service, package: &Package, root: &str, context: &Value) -> Result<Vec<String>, RenderError> {
    let mut words = vec![format!("{root}/current/{}", package.metadata.binary)];
    for (index, arg) in service.deploy.args.iter().enumerate() {
        let what = format!("deploy.args[{index}]");
        let word = fill(&what, arg, Style::Arg, context)?;
        refuse_control(&what, &word)?;
        words.push(word);
    }
    Ok(words)
}

fn refuse_control(what: &str, text: &str) -> Result<(), RenderError> {
    if text.chars().any(char::is_control) {
        return Err(RenderError::ControlCharacter { what: what.to_owned() });
    }
    Ok(())
}

/// The words of `ExecStart=`: specifiers and variables are taken literally.
fn exec_line(argv: &[String]) -> Result<String, RenderError> {
    let quoted = |word: &String| {
        template::unit_word(word).map_err(|_| RenderError::ControlCharacter { what: "the path of the release".to_owned() })
    };
    Ok(argv.iter().map(quoted).collect::<Result<Vec<_>, _>>()?.join(" "))
}

/// What a service finds in its environment: where the services are that it depends on, and over that what the definition says.
///
/// Not of all the others: a service that moves would be a new release of everything in the file.
fn environment(service: &Service) -> BTreeMap<String, Cow<'_, str>> {
    let mut all = BTreeMap::new();
    for (name, peer) in service.depends_on.iter().filter_map(|name| service.peers.get_key_value(name)) {
        let prefix = format!("ROADIE_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
        all.insert(format!("{prefix}_ADDRESS"), Cow::Borrowed(peer.address.as_str()));
        all.insert(format!("{prefix}_ADDRESSES"), Cow::Owned(peer.addresses.join(" ")));
        all.extend(peer.port.map(|port| (format!("{prefix}_PORT"), Cow::Owned(port.to_string()))));
    }
    all.extend(service.deploy.env.iter().map(|(key, value)| (key.clone(), Cow::Borrowed(value.as_str()))));
    all
}

/// The environment in the form of systemd's `EnvironmentFile=`.
fn env_file(variables: &BTreeMap<String, Cow<'_, str>>) -> Result<String, RenderError> {
    let mut text = String::new();
    for (key, value) in variables {
        let quoted = template::env_value(value);
        let quoted = quoted.map_err(|_| RenderError::ControlCharacter { what: format!("deploy.env.{key}") })?;
        let _ = writeln!(text, "{key}={quoted}");
    }
    Ok(text)
}

/// What the simple lifecycle starts. With `ROADIE_ENV_ONLY` set it can be sourced for the environment alone.
fn run_script(variables: &BTreeMap<String, Cow<'_, str>>, root: &str, argv: &[String]) -> String {
    let mut text = String::from("#!/bin/sh\n");
    for (key, value) in variables {
        let _ = writeln!(text, "export {key}={}", sh::quote(value));
    }
    let _ = writeln!(text, "[ -z \"${{ROADIE_ENV_ONLY:-}}\" ] || return 0");
    let _ = writeln!(text, "cd {} || exit 1", sh::quote(&format!("{root}/current")));
    let _ = writeln!(text, "exec {}", sh::join(argv));
    text
}

fn package_files(package: &Package) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = package.metadata.files.iter().map(|f| (f.path.clone(), f.sha256.clone())).collect();
    files.push(("metadata.json".into(), package.metadata_sha256.clone()));
    files
}

/// `sha256  path` of every file of a release: those rendered, and those that come from elsewhere.
pub(crate) fn manifest(rendered: &Rendered, elsewhere: Vec<(String, String)>) -> String {
    let mut lines = elsewhere;
    lines.push(("unit".into(), digest(&rendered.unit)));
    lines.push(("config.toml".into(), digest(rendered.config.reveal())));
    lines.push(("env".into(), digest(rendered.env.reveal())));
    lines.push(("run.sh".into(), digest(rendered.run.reveal())));
    lines.push(("health.json".into(), digest(&rendered.health)));
    lines.push(("lifecycle".into(), digest(&rendered.lifecycle)));
    lines.sort();
    lines.iter().fold(String::new(), |mut text, (path, sha)| {
        let _ = writeln!(text, "{sha}  {path}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn systemd_words_are_taken_literally() {
        let quote = |word: &str| template::unit_word(word).expect("a word");
        assert_eq!(quote("--config=/a/b.toml"), "--config=/a/b.toml");
        assert_eq!(quote("100% of $HOME \"x\\y\""), r#""100%% of $$HOME \"x\\y\"""#);
        assert_eq!(quote(""), "\"\"");
    }

    #[test]
    fn strict_templates_name_what_is_missing() {
        let fill = |text: &str, context: Value| fill("config", text, Style::Toml, &context);
        let error = fill("a = {{listen}}", json!({})).expect_err("missing");
        assert!(error.to_string().contains("listen"), "{error}");
        let error = fill("a = {{toml nope}}", json!({})).expect_err("missing");
        assert!(error.to_string().contains("nope"), "{error}");
        assert_eq!(fill("a = {{toml x}}", json!({"x": "q\"\n"})).expect("fills"), r#"a = "q\"\n""#);
    }
}
