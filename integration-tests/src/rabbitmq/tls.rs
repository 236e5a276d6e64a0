//! Certificates for a broker, made for one run of the tests.

use std::fmt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

const FOLDER: &str = "/etc/rabbitmq/tls";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Who signed a broker's certificate, and that certificate.
pub struct Authority {
    folder: TempDir,
    root: String,
    certificate: String,
    key: String,
}

impl Authority {
    pub(super) fn new() -> Result<Self, AnyError> {
        let mut authority = CertificateParams::new(Vec::new())?;
        // By default all are called the same, and look as if they had signed themselves.
        authority.distinguished_name.push(DnType::CommonName, "Authority of the tests");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let (folder, root) = (tempfile::tempdir()?, authority.pem());
        std::fs::write(folder.path().join("root.pem"), &root)?;
        Ok(Self { folder, root, certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The certificate that clients have to trust.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// What the broker needs to speak TLS on this port.
    pub(super) fn files(&self, port: u16) -> Vec<(String, String)> {
        let inside = |name: &str| Path::new(FOLDER).join(name).display().to_string();
        let settings = format!(
            "listeners.ssl.default = {port}\n\
             ssl_options.cacertfile = {}\n\
             ssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\n\
             ssl_options.verify = verify_none\n",
            inside("root.pem"),
            inside("broker.pem"),
            inside("broker.key"),
        );
        vec![
            (inside("root.pem"), self.root.clone()),
            (inside("broker.pem"), self.certificate.clone()),
            (inside("broker.key"), self.key.clone()),
            ("/etc/rabbitmq/conf.d/20-tls.conf".to_owned(), settings),
        ]
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}
