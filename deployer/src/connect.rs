//! From a host of the definition to an open session.

use async_trait::async_trait;
use roadie_model::definition::Host;
use roadie_transport::{Session, TransportError, local::LocalSession, ssh};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Opens sessions. Tests and the demo bring their own.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Opens a session to `host`.
    async fn connect(&self, host: &Host) -> Result<Arc<dyn Session>, TransportError>;
}

/// Connects over ssh, or to the local shell for [`Host::local`].
#[derive(Debug, Clone)]
pub struct SshConnector {
    /// Home directory of the user who runs roadie: keys and known_hosts are below its `.ssh`.
    pub home: PathBuf,
    /// That user's name, for hosts that name none.
    pub user: String,
    /// Socket of the ssh agent.
    pub agent: Option<PathBuf>,
    /// Learn unknown host keys instead of refusing them. Changed keys are refused all the same.
    pub accept_new_host_keys: bool,
}

impl SshConnector {
    fn options(&self, host: &Host) -> ssh::SshOptions {
        let mut options = ssh::SshOptions::with_user_defaults(&self.home, self.agent.clone());
        options.name = host.name.to_string();
        options.address = host.address.clone();
        options.port = host.port;
        options.user = host.user.clone().unwrap_or_else(|| self.user.clone());
        options.connect_timeout = host.connect_timeout;
        if let Some(key) = &host.ssh_key {
            options.use_key(expand_home(key, &self.home));
        }
        match &host.host_key {
            Some(fingerprint) => options.pin(fingerprint.clone()),
            None if self.accept_new_host_keys => options.accept_new(),
            None => {}
        }
        options
    }
}

fn expand_home(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => path.to_owned(),
    }
}

#[async_trait]
impl Connector for SshConnector {
    async fn connect(&self, host: &Host) -> Result<Arc<dyn Session>, TransportError> {
        if host.local {
            return Ok(Arc::new(LocalSession::new(self.home.clone())));
        }
        Ok(ssh::connect(self.options(host)).await?)
    }
}
