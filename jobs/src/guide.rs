//! One page per task. Each can be read by itself; the examples are run as tests.

pub mod pick_a_broker {
    #![doc = include_str!("guide/pick_a_broker.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod configure {
    #![doc = include_str!("guide/configure.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod push {
    #![doc = include_str!("guide/push.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod work {
    #![doc = include_str!("guide/work.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod shut_down {
    #![doc = include_str!("guide/shut_down.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod test_your_app {
    #![doc = include_str!("guide/test_your_app.md")]
    #[cfg(doc)]
    use crate::*;
}

pub mod write_a_driver {
    #![doc = include_str!("guide/write_a_driver.md")]
    #[cfg(doc)]
    use crate::*;
}
