//! The images of brokers, by the names in `compose/images.env`.

use jobs_core::{Error, ErrorKind, Result};
use testcontainers::GenericImage;

const PINNED: &str = include_str!("../../compose/images.env");

/// The image a variable names, in the environment or else in the file.
pub(crate) fn image(variable: &str) -> Result<GenericImage> {
    let name = std::env::var(variable).ok();
    let name = name.as_deref().or_else(|| pinned(variable));
    let (name, tag) = name.and_then(split).ok_or_else(|| {
        Error::new(ErrorKind::Config, "find an image")
            .with_context(format!("{variable}: expected NAME:TAG, found {name:?}"))
    })?;
    Ok(GenericImage::new(name, tag))
}

fn pinned(variable: &str) -> Option<&'static str> {
    let of_line = |line: &'static str| line.strip_prefix(variable)?.strip_prefix('=');
    PINNED.lines().find_map(of_line)
}

/// The tag is behind the last colon, unless that is the one of a registry's port.
fn split(image: &str) -> Option<(&str, &str)> {
    image.rsplit_once(':').filter(|(name, tag)| !name.is_empty() && !tag.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_brokers_are_pinned() {
        for broker in ["RABBITMQ", "KAFKA", "ELASTICMQ", "BEANSTALKD"] {
            let variable = format!("JOBS_{broker}_IMAGE");
            assert!(pinned(&variable).and_then(split).is_some(), "{variable}");
        }
    }

    #[test]
    fn the_port_of_a_registry_is_no_tag() {
        assert_eq!(split("localhost:5000/rabbitmq:4"), Some(("localhost:5000/rabbitmq", "4")));
        assert_eq!(split("localhost:5000/rabbitmq"), None);
    }
}
