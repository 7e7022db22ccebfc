//! TLS: certificates and keys from PEM files, with rustls and ring.

use std::sync::Arc;

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag, Tagged};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

/// The protocols offered to clients, in order of preference.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// An error in PEM text: the configuration key that names its file, and the problem.
#[derive(Debug, PartialEq, Eq)]
pub struct PemError {
    /// `cert`, `key`, `ca` or `client_ca`.
    pub key: &'static str,
    /// The problem and what is expected.
    pub message: String,
}

fn wrong(key: &'static str, message: impl Into<String>) -> PemError {
    let message = message.into();
    PemError { key, message }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// TLS 1.3 and 1.2; older versions are insecure.
const VERSIONS: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// Returns the configuration of a server with the chain in `cert` and the key in `key`. With
/// `client_ca` each client has to present a certificate that one of these authorities has signed.
pub fn server(cert: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<ServerConfig, PemError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(|e| wrong("cert", e.to_string()))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(roots("client_ca", pem)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            let verifier = verifier.map_err(|e| wrong("client_ca", e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let (chain, key) = identity(cert, key)?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|e| mismatch(&e))?;
    config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
    Ok(config)
}

/// Returns when the first certificate of the chain in `cert` expires, in seconds of Unix time.
pub fn expiry(cert: &[u8]) -> Option<u64> {
    let chain = CertificateDer::pem_slice_iter(cert).flatten();
    chain.filter_map(|der| not_after(&der).ok()).min()
}

/// Returns the end of the validity of `certificate`, in seconds of Unix time (RFC 5280, section 4.1).
fn not_after(certificate: &[u8]) -> der::Result<u64> {
    let certificate = AnyRef::from_der(certificate)?;
    let mut parts = SliceReader::new(certificate.value())?;
    let to_be_signed = AnyRef::decode(&mut parts)?;
    let mut fields = SliceReader::new(to_be_signed.value())?;
    let mut next = || AnyRef::decode(&mut fields);
    // The version is optional; the serial number, the signature's algorithm and the issuer follow.
    if next()?.tag().is_context_specific() {
        next()?;
    }
    next()?;
    next()?;
    let mut validity = SliceReader::new(next()?.value())?;
    AnyRef::decode(&mut validity)?;
    let end = AnyRef::decode(&mut validity)?;
    let end = match end.tag() {
        Tag::UtcTime => end.decode_as::<UtcTime>()?.to_unix_duration(),
        _ => end.decode_as::<GeneralizedTime>()?.to_unix_duration(),
    };
    Ok(end.as_secs())
}

/// Checks that `cert` and `key` are a client certificate and its key.
pub fn check_client(cert: &[u8], key: &[u8]) -> Result<(), PemError> {
    // A server's certificate is checked in the same way.
    server(cert, key, None).map(drop)
}

/// Checks that `pem` contains certificates of authorities.
pub fn check_ca(pem: &[u8]) -> Result<(), PemError> {
    roots("ca", pem).map(drop)
}

fn mismatch(error: &rustls::Error) -> PemError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong("key", "is not the key of the certificate in `cert`")
        }
        rustls::Error::InvalidCertificate(_) => {
            wrong("cert", format!("contains an unusable certificate: {error}"))
        }
        _ => wrong("key", format!("contains an unusable key: {error}")),
    }
}

fn identity(
    cert: &[u8],
    key: &[u8],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PemError> {
    let chain = certificates("cert", cert)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
        // The parser's own message could contain a part of the file.
        let expected = "contains no readable private key; expected PEM: -----BEGIN PRIVATE KEY-----, without a passphrase";
        wrong("key", expected)
    })?;
    Ok((chain, key))
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let expected = "contains no readable certificate; expected PEM: -----BEGIN CERTIFICATE-----";
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| wrong(key, expected))
}

fn roots(key: &'static str, pem: &[u8]) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, pem)? {
        roots
            .add(certificate)
            .map_err(|e| wrong(key, format!("contains an unusable certificate: {e}")))?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn ending(year: i32) -> String {
        let mut params = CertificateParams::new(vec!["a.example".into()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 2);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn of_a_chain_the_first_end_counts() {
        // Times from 2050 on are written in another way.
        let (soon, late) = (ending(2030), ending(2055));
        assert_eq!(expiry(soon.as_bytes()), Some(1_893_542_400));
        assert_eq!(expiry(late.as_bytes()), Some(2_682_460_800));
        let chain = format!("{late}{soon}");
        assert_eq!(expiry(chain.as_bytes()), Some(1_893_542_400));
        // One that cannot be read does not count.
        let broken = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert_eq!(expiry(broken.as_bytes()), None);
        assert_eq!(
            expiry(format!("{broken}{late}").as_bytes()),
            Some(2_682_460_800)
        );
    }
}
