//! What was asked for, parsed, checked and resolved, before anything is created.
//!
//! Nothing in this room makes a system call: a plan is plain data. `tapline run` and `tapline attach`
//! turn their options into one ([`crate::cli`]), the supervisor carries it out ([`crate::sandbox`]),
//! and the part that concerns the gateway ([`Network`], [`Endpoint`], [`HostView`]) travels to it over
//! the attach protocol as JSON.

pub mod date;
mod definition;
mod mac;
mod network;
mod ports;
mod run;
pub mod subnet;
pub mod words;

pub use definition::{
    BRIDGE, DEFAULT_MTU, Definition, DefinitionError, Draft, Ipv4Part, Ipv6Part, Wanted, parse_network_name,
};
pub use mac::{MacAddr, MacError};
pub use network::{
    Access, Announcements, Behaviour, Endpoint, GATEWAY_NAMES, HostView, Ipv4Layout, Ipv6Layout, LinkKind,
    LocalClients, Mapping, Network, Outbound, PRIVATE, SandboxLink, Services, Sharing,
};
pub use ports::{
    Auto, AutoRules, BindFailure, BindManner, ClashError, Expose, Origin, PortFailure, PortRange, Ports, Protocol,
    ProxyVersion, PublishArg, PublishSpec, Published, PublishedKey, Reach, ReachArg, Reached, SpecError, check_specs,
    parse_clients, parse_port,
};
pub use run::{
    Attach, HostTarget, Interface, InterfaceExtras, Join, LINK_NUMBER, LinkChoice, Logging, MapUser, Mode, Names,
    PidMode, Route, Run, Seat, Shared, Surroundings, Target, Userns,
};
