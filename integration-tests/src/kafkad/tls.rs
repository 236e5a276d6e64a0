//! Certificates and users for a broker, made for one run of the tests.

use std::fmt;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use testcontainers::{ContainerRequest, GenericImage, ImageExt};

/// Who may do everything.
pub const USER: &str = "kit";
/// Who may log in and do nothing.
pub const STRANGER: &str = "stranger";
/// The password of both.
pub const PASSWORD: &str = "a-secret-of-the-tests";

const STORE: &str = "/tmp/broker.pem";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Who signed a broker's certificate, and that certificate.
pub struct Authority {
    folder: TempDir,
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
        let names = ["localhost".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let folder = tempfile::tempdir()?;
        std::fs::write(folder.path().join("root.pem"), authority.pem())?;
        Ok(Self { folder, certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The certificate that clients have to trust.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// What a broker needs to speak TLS, to ask who is there, and to know who may do what. Who comes
    /// without TLS may do everything.
    pub(super) fn configure(
        &self,
        request: ContainerRequest<GenericImage>,
    ) -> ContainerRequest<GenericImage> {
        let store = format!("{}{}", self.key, self.certificate);
        let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        request
            .with_copy_to(STORE, store.into_bytes())
            .with_env_var("KAFKA_SSL_KEYSTORE_TYPE", "PEM")
            .with_env_var("KAFKA_SSL_KEYSTORE_LOCATION", STORE)
            .with_env_var("KAFKA_SASL_ENABLED_MECHANISMS", "SCRAM-SHA-512")
            .with_env_var("KAFKA_LISTENER_NAME_ENCRYPTED_SCRAM___SHA___512_SASL_JAAS_CONFIG", login)
            .with_env_var(
                "KAFKA_AUTHORIZER_CLASS_NAME",
                "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            )
            .with_env_var("KAFKA_SUPER_USERS", format!("User:ANONYMOUS;User:{USER}"))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("folder", &self.folder).finish_non_exhaustive()
    }
}
