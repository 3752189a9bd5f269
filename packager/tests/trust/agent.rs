//! Keys that an agent holds.

use crate::common::{Agent, KINDS, Workshop, allow, keygen, public, stock_verifies};
use roadie_packager::trust::{self, Refusal, SignError, Signer, TrustError};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

#[tokio::test]
async fn an_agent_signs() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let socket = shop.dir.join("agent");
    let reason = |socket: Option<&Path>, wanted: Option<&str>| Signer::from_agent(socket, wanted).expect_err("refused");
    assert!(reason(None, None).to_string().contains("SSH_AUTH_SOCK is not set"));
    assert!(matches!(reason(Some(&socket), None), SignError::Socket { .. }));

    let agent = Agent::start(&socket);
    assert!(reason(Some(&socket), None).to_string().contains("holds no key"));
    let mut keys = Vec::new();
    for (kind, bits) in KINDS {
        let key = keygen(&shop.dir, &format!("{kind}{bits}"), &["-t", kind, "-b", bits, "-N", "secret"]);
        agent.add(&key, "secret");
        if keys.is_empty() {
            Signer::from_agent(Some(&socket), None).expect("the only key needs no name");
        }
        keys.push(key);
    }
    let several = reason(Some(&socket), None);
    assert!(several.to_string().contains("several keys: SHA256:"), "{several}");
    assert!(several.hint().is_some_and(|h| h.contains("--agent=SHA256:")));
    for key in &keys {
        let file = key.with_extension("pub").display().to_string();
        let signer = Signer::from_agent(Some(&socket), Some(&file)).expect("the agent has it");
        let signed = trust::sign(&shop.store, &package.id, &signer).expect("signs");
        let allowed = shop.dir.join("allowed");
        fs::write(&allowed, format!("me {}\n", public(key))).expect("writes");
        assert!(stock_verifies(&allowed, "me", &signed.signature, &signed.statement), "{file}");
        trust::verify(&shop.store, &package, &allow(&format!("me {}", public(key)))).expect("reads").expect("trusted");
        Signer::from_agent(Some(&socket), Some(&signed.fingerprint)).expect("by fingerprint");
    }
    let stranger = keygen(&shop.dir, "stranger", &["-t", "ed25519"]).with_extension("pub").display().to_string();
    assert!(reason(Some(&socket), Some(&stranger)).to_string().contains("does not hold SHA256:"));
    assert!(reason(Some(&socket), Some("no/such.pub")).to_string().contains("no public key file"));

    // The agent goes away between choosing and signing.
    let signer = Signer::from_agent(Some(&socket), Some(&keys[0].with_extension("pub").display().to_string())).expect("chosen");
    drop(agent);
    assert!(matches!(trust::sign(&shop.store, &package.id, &signer), Err(TrustError::Sign(SignError::Socket { .. }))));
}

#[test]
fn an_agent_that_talks_nonsense_is_survived() {
    let shop = Workshop::new();
    let answers: [&[u8]; 6] = [
        &[],
        &[0, 0, 0, 1, 5],
        &[0xff; 4],
        &[0, 0, 0, 5, 12, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 9, 12, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 0],
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let socket = shop.dir.join(format!("s{index}"));
        let listener = UnixListener::bind(&socket).expect("binds");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepts");
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(answer);
        });
        let error = Signer::from_agent(Some(&socket), None).expect_err("refused");
        let SignError::Socket { source, .. } = error else { panic!("{index}: {error}") };
        // A length that no agent sends is refused as such, and not waited for.
        assert!(answer != [0xff; 4] || source.to_string().contains("does not speak the agent's protocol"), "{source}");
        server.join().expect("ends");
    }
}

/// A token that lost its key, an agent that answers for another: found out now, and not by those who verify.
#[tokio::test]
async fn a_useless_signature_is_thrown_away() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let key = ssh_key::PublicKey::from_openssh(&public(&keygen(&shop.dir, "key", &["-t", "ed25519"]))).expect("a key");
    let string = |bytes: &[u8]| [&u32::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat();
    let listed = [&[12, 0, 0, 0, 1][..], &string(&key.to_bytes().expect("bytes")), &string(b"")].concat();
    let signed = [&[14][..], &string(&[string(b"ssh-ed25519"), string(&[1; 64])].concat())].concat();
    let answers = [string(&listed), string(&signed)];
    let socket = shop.dir.join("fake");
    let listener = UnixListener::bind(&socket).expect("binds");
    let server = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut size = [0; 4];
            stream.read_exact(&mut size).expect("a length");
            let mut request = vec![0; u32::from_be_bytes(size) as usize];
            stream.read_exact(&mut request).expect("a request");
            stream.write_all(&answer).expect("writes");
        }
    });
    let signer = Signer::from_agent(Some(&socket), None).expect("the only key");
    let error = trust::sign(&shop.store, &package.id, &signer).expect_err("refused");
    assert!(matches!(error, TrustError::Sign(SignError::Useless { .. })), "{error}");
    server.join().expect("ends");
    let refused = trust::verify(&shop.store, &package, &allow("")).expect("reads").expect_err("nothing was written");
    assert_eq!(refused.refusals, [(None, Refusal::NoSignature)]);
}
