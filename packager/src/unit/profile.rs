//! How far a generated unit is locked in.

use roadie_model::definition::Profile;

/// The directives of `profile` for the service `name`.
pub fn directives(profile: Profile, name: &str) -> Vec<(&'static str, String)> {
    let mut list = identity(name);
    if profile == Profile::Legacy {
        add(&mut list, LIGHT);
        return list;
    }
    // Not the bare name: systemd deletes this folder when the service stops, and the bare name may be somebody else's.
    list.push(("RuntimeDirectory", format!("roadie-{name}")));
    add(&mut list, STRICT);
    if profile != Profile::Jit {
        add(&mut list, &[("MemoryDenyWriteExecute", "yes")]);
    }
    add(&mut list, if profile == Profile::Worker { NO_NETWORK } else { NETWORK });
    list
}

fn add(list: &mut Vec<(&'static str, String)>, more: &[(&'static str, &str)]) {
    list.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
}

/// State is under the same name in every profile: a service keeps it when its profile changes.
fn identity(name: &str) -> Vec<(&'static str, String)> {
    let mut list = vec![("DynamicUser", "yes".to_owned()), ("StateDirectory", name.to_owned())];
    add(&mut list, &[("StateDirectoryMode", "0700"), ("UMask", "0077"), ("NoNewPrivileges", "yes")]);
    list
}

/// Leaves system calls, memory and what of /proc is seen alone.
const LIGHT: &[(&str, &str)] = &[
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
];

const STRICT: &[(&str, &str)] = &[
    ("CapabilityBoundingSet", ""),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("DevicePolicy", "closed"),
    ("PrivateUsers", "yes"),
    ("PrivateMounts", "yes"),
    ("PrivateIPC", "yes"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("ProtectHostname", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    ("SystemCallFilter", "~@privileged @resources"),
    // A refused call is an error that the program can handle and tell, not the end of it.
    ("SystemCallErrorNumber", "EPERM"),
    // The kernel's own 1024 is a few connections for a server; the upper limit stays systemd's.
    ("LimitNOFILE", "65536:524288"),
];

const NETWORK: &[(&str, &str)] = &[("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")];
const NO_NETWORK: &[(&str, &str)] = &[("PrivateNetwork", "yes"), ("RestrictAddressFamilies", "AF_UNIX")];
