//! What the guest is made of and can be tested on the host.
#![no_std]
