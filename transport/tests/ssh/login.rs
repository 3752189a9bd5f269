//! Who is let in: keys, agents, and host keys that are known, changed, revoked or new.

use crate::common::{OpenSsh, fingerprint, keygen};
use crate::{embedded, fails, works};
use roadie_transport::TransportError;
use roadie_transport::known_hosts::{KnownHosts, Policy};
use roadie_transport::ssh::SshOptions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_every_kind_let_us_in() {
    let Some(server) = OpenSsh::start("").await else { return };
    let folder = server.folder.path();
    let kinds: [(&str, &[&str]); 4] = [
        ("ed25519", &["-t", "ed25519"]),
        ("ecdsa", &["-t", "ecdsa", "-b", "384"]),
        ("rsa", &["-t", "rsa", "-b", "2048"]),
        ("pem", &["-t", "rsa", "-b", "2048", "-m", "PEM"]),
    ];
    for (kind, arguments) in kinds {
        let key = keygen(folder, &format!("key_{kind}"), arguments);
        std::fs::copy(key.with_extension("pub"), folder.join("authorized_keys")).unwrap();
        let mut options = server.options();
        options.use_key(key);
        works(options).await;
    }
    // Signed with SHA-2: this sshd takes nothing else, and says which it saw.
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    assert!(log.contains("Accepted publickey") && log.contains("RSA SHA256:"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_host_key_will_do_when_it_is_the_known_one() {
    let Some(server) = OpenSsh::start("").await else { return };
    let public = std::fs::read_to_string(server.folder.path().join("host_rsa.pub")).unwrap();
    let file = server.folder.path().join("known_hosts");
    std::fs::write(&file, format!("[127.0.0.1]:{} {public}", server.port)).unwrap();
    let mut options = server.options();
    options.known_hosts = KnownHosts { policy: Policy::Strict, files: vec![file] };
    works(options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_keys_are_listed() {
    let place = embedded().await;
    let other = keygen(place.folder.path(), "other", &["-t", "ed25519"]);
    let mut options = place.options();
    options.use_key(other.clone());
    let error = fails(options).await;
    assert_eq!(error.to_string(), format!("login as `anyone` refused (tried: {})", other.display()));
    let mut options = place.options();
    (options.keys, options.named_key) = (vec![], false);
    let error = fails(options).await;
    assert_eq!(error.to_string(), "login as `anyone` refused (tried: no key: neither an agent nor a key file)");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_most_six_keys_are_offered_and_default_ones_may_be_unusable() {
    let place = embedded().await;
    let folder = place.folder.path();
    let mut keys: Vec<_> = (0..7).map(|n| keygen(folder, &format!("k{n}"), &["-t", "ed25519"])).collect();
    let locked = keygen(folder, "locked", &["-t", "ed25519", "-N", "secret"]);
    let mut options = place.options();
    (options.keys, options.named_key) = ([vec![locked, folder.join("missing")], keys.clone()].concat(), false);
    let error = fails(options.clone()).await.to_string();
    assert!(error.contains("locked not usable: it has a passphrase") && error.contains("k5") && !error.contains("k6"), "{error}");
    keys.insert(5, place.server.client_key_path().to_owned());
    options.keys = keys;
    works(options).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_seen_enough_keys_is_a_refusal() {
    let Some(server) = OpenSsh::start("MaxAuthTries 2").await else { return };
    let keys = (0..4).map(|n| keygen(server.folder.path(), &format!("k{n}"), &["-t", "ed25519"])).collect();
    let error = fails(SshOptions { keys, named_key: false, ..server.options() }).await;
    let text = error.to_string();
    assert!(matches!(error, TransportError::AuthRefused { .. }), "{text}");
    assert!(text.contains("k0") && text.contains("Too many authentication failures") && !text.contains("k3"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_key_files_say_why() {
    let place = embedded().await;
    let folder = place.folder.path();
    let reason = async |path: &Path| {
        let mut options = place.options();
        options.use_key(path.to_owned());
        match fails(options).await {
            TransportError::KeyFile { path: told, reason } if told == path => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason(&folder.join("missing")).await, "no such file");
    let open = keygen(folder, "open", &["-t", "ed25519"]);
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(reason(&open).await, "others may read it (mode 0644): chmod 600 it");
    for (name, form) in [("locked", "RFC4716"), ("locked_pem", "PEM"), ("locked_pkcs8", "PKCS8")] {
        let locked = keygen(folder, name, &["-t", "rsa", "-b", "2048", "-m", form, "-N", "secret"]);
        assert_eq!(reason(&locked).await, "it has a passphrase: load it into ssh-agent", "{form}");
    }
    let garbage = folder.join("garbage");
    std::fs::write(&garbage, "not a key").unwrap();
    std::fs::set_permissions(&garbage, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(!reason(&garbage).await.is_empty());
}

/// An agent of our own; killed when dropped.
struct Agent {
    child: tokio::process::Child,
    socket: std::path::PathBuf,
}

impl Agent {
    async fn start(folder: &Path, keys: &[&Path]) -> Self {
        let socket = folder.join("agent");
        let child = tokio::process::Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        while !socket.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for key in keys {
            let mut add = tokio::process::Command::new("ssh-add");
            let added = add.arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket).status().await.unwrap();
            assert!(added.success());
        }
        Self { child, socket }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_signs_with_what_it_holds() {
    let place = embedded().await;
    let folder = place.folder.path();
    let rsa = keygen(folder, "rsa", &["-t", "rsa", "-b", "2048"]);
    let stranger = keygen(folder, "stranger", &["-t", "ed25519"]);
    place.server.authorize(&std::fs::read_to_string(rsa.with_extension("pub")).unwrap()).unwrap();
    let mut agent = Agent::start(folder, &[&stranger, &rsa]).await;
    let mut options = place.options();
    (options.keys, options.named_key, options.agent_socket) = (vec![], false, Some(agent.socket.clone()));
    works(options.clone()).await;
    // A named key with a passphrase: its opened twin in the agent serves, and only that one.
    let public = std::fs::read(rsa.with_extension("pub")).unwrap();
    let locked = std::process::Command::new("ssh-keygen").args(["-q", "-p", "-P", "", "-N", "secret", "-f"]).arg(&rsa).status();
    assert!(locked.unwrap().success());
    options.use_key(rsa.clone());
    works(options.clone()).await;
    assert_eq!(std::fs::read(rsa.with_extension("pub")).unwrap(), public);
    // The agent is gone: its keys are not there, and the file says what to do.
    agent.child.kill().await.unwrap();
    assert!(fails(options).await.to_string().contains("load it into ssh-agent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn host_keys_unknown_changed_revoked_pinned() {
    let place = embedded().await;
    let (name, key) = (place.name(), place.server.host_key());
    let other = keygen(place.folder.path(), "other", &["-t", "ed25519"]);
    let other_key = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    works(place.known(Policy::Strict, &format!("{name} {key}\n"))).await;
    works(place.known(Policy::Strict, &format!("{name} {other_key}{name} {key}\n"))).await;

    let error = fails(place.known(Policy::Strict, "")).await;
    let TransportError::HostKeyUnknown { fingerprint: shown, line, .. } = error else { panic!("{error:?}") };
    assert_eq!(shown, place.server.host_fingerprint());
    works(place.known(Policy::Strict, &format!("{line}\n"))).await;

    let error = fails(place.known(Policy::Strict, &format!("{name} {other_key}"))).await;
    let told = format!("known_hosts:1 says {}", fingerprint(&other.with_extension("pub")));
    assert!(matches!(&error, TransportError::HostKeyChanged { expected, .. } if expected.ends_with(&told)), "{error:?}");

    let error = fails(place.known(Policy::AcceptNew, &format!("{name} {key}\n@revoked * {key}\n"))).await;
    assert!(matches!(&error, TransportError::HostKeyRevoked { by, .. } if by.ends_with("known_hosts:2")), "{error:?}");

    works(place.known(Policy::Pinned(place.server.host_fingerprint().into()), &format!("{name} {other_key}"))).await;
    let error = fails(place.known(Policy::Pinned("SHA256:other".into()), &format!("{name} {key}"))).await;
    assert!(matches!(error, TransportError::HostKeyChanged { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_new_makes_a_host_known() {
    let place = embedded().await;
    works(place.known(Policy::AcceptNew, "")).await;
    let text = std::fs::read_to_string(place.folder.path().join("known_hosts")).unwrap();
    works(place.known(Policy::Strict, &text)).await;
    let other = keygen(place.folder.path(), "other", &["-t", "ed25519"]);
    let other = std::fs::read_to_string(other.with_extension("pub")).unwrap();
    let error = fails(place.known(Policy::AcceptNew, &format!("{} {other}", place.name()))).await;
    assert!(matches!(error, TransportError::HostKeyChanged { .. }), "{error:?}");
}
