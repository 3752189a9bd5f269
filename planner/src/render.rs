//! Templates filled in for one host: unit, config, environment, start script; and the release id over all of them.

use handlebars::{Handlebars, no_escape};
use roadie_model::definition::{Host, Lifecycle, RuntimeKind, Scope, Service};
use roadie_model::facts::HostFacts;
use roadie_model::id::ReleaseId;
use roadie_model::package::Package;
use roadie_model::plan::{Rendered, SecretText};
use roadie_model::sh;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Stands for the release id while the id is not known: the id is a digest over texts that name it.
const RELEASE_PLACEHOLDER: &str = "@ROADIE-RELEASE@";

/// Why a template could not be filled in.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The template names something that is not there, or is malformed.
    #[error("cannot render {what}: {reason}")]
    Template {
        /// Which text: `config-template.toml`, `systemd.service`, `deploy.args[2]`.
        what: String,
        /// The engine's reason, with the missing name.
        reason: String,
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
    let context = context(service, host, facts);
    let config = fill("config-template.toml", &package.config_template, &context)?;
    if service.config.as_ref().is_some_and(|p| p.to_string_lossy().contains(".toml")) {
        toml::from_str::<toml::Table>(&config).map_err(|e| RenderError::Toml(e.to_string()))?;
    }
    let argv = argv(service, package, root, &context)?;
    let env = env_file(service)?;
    let unit = if service.deploy.lifecycle == Lifecycle::Systemd { unit(service, package, root, &argv)? } else { String::new() };
    let run = run_script(service, root, &argv);
    let health = serde_json::to_string(&service.deploy.health).unwrap_or_default();

    let id = release_id(&[package.id.as_str(), lifecycle(service), &unit, &config, &env, &run]);
    let unit = unit.replace(RELEASE_PLACEHOLDER, id.as_str());
    let mut rendered = Rendered {
        unit,
        config: SecretText::new(config),
        env: SecretText::new(env),
        run: SecretText::new(run),
        health,
        manifest: String::new(),
    };
    rendered.manifest = manifest(package, &rendered, lifecycle(service));
    Ok((id, rendered))
}

/// The word that the host script knows the lifecycle by.
fn lifecycle(service: &Service) -> &'static str {
    match service.deploy.lifecycle {
        Lifecycle::Systemd => "systemd",
        Lifecycle::Simple => "simple",
    }
}

fn release_id(parts: &[&str]) -> ReleaseId {
    let mut hash = Sha256::new();
    hash.update(b"roadie-release/1\n");
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    ReleaseId::new(hex(&hash.finalize())).unwrap_or_else(|_| unreachable!("a sha256 in hex is a release id"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// What templates may name. Variables stand at the top too, unless they would hide one of roadie's own names.
fn context(service: &Service, host: &Host, facts: &HostFacts) -> Value {
    let root = &facts.root;
    let mut map: serde_json::Map<String, Value> = service.vars.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let own = json!({
        "service": service.name.as_str(),
        "root": root,
        "release_dir": format!("{root}/current"),
        "config_path": format!("{root}/current/config.toml"),
        "env_file": format!("{root}/current/env"),
        "user_scope": service.deploy.scope == Scope::User,
        "vars": service.vars,
        "env": service.deploy.env,
        "host": { "name": host.name.as_str(), "address": host.address, "tags": host.tags },
        "facts": { "machine": facts.machine, "glibc": facts.glibc, "systemd": facts.systemd, "home": facts.home },
    });
    if let Value::Object(own) = own {
        map.extend(own);
    }
    Value::Object(map)
}

fn fill(what: &str, template: &str, context: &Value) -> Result<String, RenderError> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    // HTML entities have no place in TOML, units or argument lists.
    engine.register_escape_fn(no_escape);
    engine.register_helper("toml", Box::new(helper_toml));
    engine.register_helper("json", Box::new(helper_json));
    engine
        .render_template(template, context)
        .map_err(|e| RenderError::Template { what: what.to_owned(), reason: e.reason().to_string() })
}

type HelperResult = Result<(), handlebars::RenderError>;

fn helper_value<'a>(helper: &'a handlebars::Helper<'_>) -> Result<&'a Value, handlebars::RenderError> {
    let value = helper.param(0).ok_or(handlebars::RenderErrorReason::ParamNotFoundForIndex("toml", 0))?;
    if value.is_value_missing() {
        let path = value.relative_path().cloned();
        return Err(handlebars::RenderErrorReason::MissingVariable(path).into());
    }
    Ok(value.value())
}

fn helper_toml(
    helper: &handlebars::Helper<'_>,
    _: &Handlebars<'_>,
    _: &handlebars::Context,
    _: &mut handlebars::RenderContext<'_, '_>,
    out: &mut dyn handlebars::Output,
) -> HelperResult {
    let value = helper_value(helper)?;
    let text = toml::Value::try_from(value)
        .map_err(|e| handlebars::RenderErrorReason::Other(format!("not a TOML value: {e}")))?
        .to_string();
    Ok(out.write(&text)?)
}

fn helper_json(
    helper: &handlebars::Helper<'_>,
    _: &Handlebars<'_>,
    _: &handlebars::Context,
    _: &mut handlebars::RenderContext<'_, '_>,
    out: &mut dyn handlebars::Output,
) -> HelperResult {
    Ok(out.write(&helper_value(helper)?.to_string())?)
}

fn argv(service: &Service, package: &Package, root: &str, context: &Value) -> Result<Vec<String>, RenderError> {
    let mut words = vec![format!("{root}/current/{}", package.metadata.binary)];
    for (index, arg) in service.deploy.args.iter().enumerate() {
        let what = format!("deploy.args[{index}]");
        let word = fill(&what, arg, context)?;
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

fn unit(service: &Service, package: &Package, root: &str, argv: &[String]) -> Result<String, RenderError> {
    let exec = argv.iter().map(|w| systemd_quote(w)).collect::<Vec<_>>().join(" ");
    let context = json!({
        "service": service.name.as_str(),
        "root": root,
        "release_dir": format!("{root}/current"),
        "config_path": format!("{root}/current/config.toml"),
        "env_file": format!("{root}/current/env"),
        "exec": exec,
        "release": RELEASE_PLACEHOLDER,
        "user_scope": service.deploy.scope == Scope::User,
        "vars": service.vars,
    });
    fill("systemd.service", &package.unit_template, &context)
}

/// Quotes one word of `ExecStart=` (systemd.service(5), "Command lines"): specifiers and variables are taken literally.
fn systemd_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '%' => quoted.push_str("%%"),
            '$' => quoted.push_str("$$"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The environment in the form of systemd's `EnvironmentFile=` (systemd.exec(5)): double quotes, backslash escapes.
fn env_file(service: &Service) -> Result<String, RenderError> {
    let mut text = String::new();
    for (key, value) in &service.deploy.env {
        if value.contains('\0') {
            return Err(RenderError::ControlCharacter { what: format!("deploy.env.{key}") });
        }
        let _ = write!(text, "{key}=\"");
        for c in value.chars() {
            if matches!(c, '"' | '\\' | '`' | '$') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    Ok(text)
}

/// What the simple lifecycle starts. With `ROADIE_ENV_ONLY` set it can be sourced for the environment alone.
fn run_script(service: &Service, root: &str, argv: &[String]) -> String {
    let mut text = String::from("#!/bin/sh\n");
    for (key, value) in &service.deploy.env {
        let _ = writeln!(text, "export {key}={}", sh::quote(value));
    }
    let _ = writeln!(text, "[ -z \"${{ROADIE_ENV_ONLY:-}}\" ] || return 0");
    let _ = writeln!(text, "cd {} || exit 1", sh::quote(&format!("{root}/current")));
    let _ = writeln!(text, "exec {}", sh::join(argv));
    text
}

fn manifest(package: &Package, rendered: &Rendered, lifecycle: &str) -> String {
    let mut lines: Vec<(String, String)> = package.metadata.files.iter().map(|f| (f.path.clone(), f.sha256.clone())).collect();
    lines.push(("unit".into(), digest(&rendered.unit)));
    lines.push(("config.toml".into(), digest(rendered.config.reveal())));
    lines.push(("env".into(), digest(rendered.env.reveal())));
    lines.push(("run.sh".into(), digest(rendered.run.reveal())));
    lines.push(("health.json".into(), digest(&rendered.health)));
    lines.push(("lifecycle".into(), digest(lifecycle)));
    lines.push(("metadata.json".into(), package.metadata_sha256.clone()));
    lines.sort();
    lines.iter().fold(String::new(), |mut text, (path, sha)| {
        let _ = writeln!(text, "{sha}  {path}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_words_are_taken_literally() {
        assert_eq!(systemd_quote("--config=/a/b.toml"), "--config=/a/b.toml");
        assert_eq!(systemd_quote("100% of $HOME \"x\\y\""), r#""100%% of $$HOME \"x\\y\"""#);
        assert_eq!(systemd_quote(""), "\"\"");
    }

    #[test]
    fn strict_templates_name_what_is_missing() {
        let error = fill("config", "a = {{listen}}", &json!({})).expect_err("missing");
        assert!(error.to_string().contains("listen"), "{error}");
        let error = fill("config", "a = {{toml nope}}", &json!({})).expect_err("missing");
        assert!(error.to_string().contains("nope"), "{error}");
        assert_eq!(fill("config", "a = {{toml x}}", &json!({"x": "q\"\n"})).expect("fills"), "a = \"\"\"\nq\"\n\"\"\"");
    }
}
