package pdu

// Sizes of the fixed parts of a PDU. RFC 7143 section 11.2.
const (
	HeaderLen = 48 // basic header segment, 11.2.1
	DigestLen = 4  // CRC32C, 13.1
	// MaxAHSLen is what TotalAHSLength, one byte of 4-byte words, can say.
	MaxAHSLen = 255 * 4
	// MaxDataLen is what DataSegmentLength, three bytes, can say.
	MaxDataLen = 1<<24 - 1
)

// NoTag is the reserved tag: "no task". RFC 7143 section 11.2.1.8.
const NoTag = 0xffffffff

// Op is an iSCSI opcode: the low six bits of a header's first byte.
type Op byte

// Opcodes of RFC 7143 section 11.2.1.2. Those below 0x20 come from an initiator.
const (
	OpNopOut    Op = 0x00
	OpCommand   Op = 0x01 // SCSI Command
	OpTaskReq   Op = 0x02 // Task Management Function Request
	OpLoginReq  Op = 0x03
	OpTextReq   Op = 0x04
	OpDataOut   Op = 0x05
	OpLogoutReq Op = 0x06
	OpSNACK     Op = 0x10

	OpNopIn      Op = 0x20
	OpResponse   Op = 0x21 // SCSI Response
	OpTaskResp   Op = 0x22
	OpLoginResp  Op = 0x23
	OpTextResp   Op = 0x24
	OpDataIn     Op = 0x25
	OpLogoutResp Op = 0x26
	OpR2T        Op = 0x31
	OpAsync      Op = 0x32
	OpReject     Op = 0x3f
)

// Bits of the first two bytes. RFC 7143 sections 11.2.1.1, 11.3.1, 11.7, 11.12.
const (
	opMask    = 0x3f
	immediate = 0x40

	FlagFinal    = 0x80 // F
	FlagContinue = 0x40 // C: Login and Text
	FlagTransit  = 0x80 // T: Login

	CommandRead  = 0x40 // R: SCSI Command expects Data-In
	CommandWrite = 0x20 // W: SCSI Command carries Data-Out

	DataStatus    = 0x01 // S: Data-In carries the status
	FlagUnderflow = 0x02 // U: Residual Underflow
	FlagOverflow  = 0x04 // O: Residual Overflow
)

// Byte offsets in the basic header segment. RFC 7143 sections 11.3 to 11.19:
// fields that different PDUs have at one place share a constant.
const (
	offOpcode    = 0
	offFlags     = 1
	offAHSLen    = 4
	offDataLen   = 5 // 3 bytes
	offLUN       = 8
	offISID      = 8  // Login: 6 bytes
	offTSIH      = 14 // Login
	offITT       = 16
	offTTT       = 20 // also EDTL of a SCSI Command, RefTaskTag, CID
	offCmdSN     = 24 // initiator; StatSN from a target
	offExpStatSN = 28 // initiator; ExpCmdSN from a target
	offMaxCmdSN  = 32 // target; RefCmdSN of a task management request
	offCDB       = 32 // SCSI Command: 16 bytes
	offDataSN    = 36 // also R2TSN, ExpDataSN, Async Event
	offBufOffset = 40
	offResidual  = 44 // also Desired Data Transfer Length of an R2T
)

// Login stages, CSG and NSG. RFC 7143 section 11.12.3.
const (
	StageSecurity    = 0
	StageOperational = 1
	StageFull        = 3
)

// Login status: class in the high byte, detail in the low one. RFC 7143 section 11.13.5.
const (
	LoginSuccess          = 0x0000
	LoginTargetMoved      = 0x0101
	LoginInitiatorError   = 0x0200
	LoginAuthFailed       = 0x0201
	LoginForbidden        = 0x0202
	LoginNotFound         = 0x0203
	LoginRemoved          = 0x0204
	LoginBadVersion       = 0x0205
	LoginTooMany          = 0x0206 // too many connections in the session
	LoginMissingParameter = 0x0207
	LoginCantInclude      = 0x0208 // can't include in session
	LoginBadSessionType   = 0x0209
	LoginNoSession        = 0x020a // session does not exist
	LoginInvalidRequest   = 0x020b // invalid during login
	LoginTargetError      = 0x0300
	LoginUnavailable      = 0x0301
	LoginOutOfResources   = 0x0302
)

// Reasons of a Reject. RFC 7143 section 11.17.1.
const (
	RejectDataDigest    = 0x02
	RejectSNACK         = 0x03
	RejectProtocol      = 0x04
	RejectUnsupported   = 0x05
	RejectImmediate     = 0x06 // too many immediate commands
	RejectInvalidField  = 0x09
	RejectOutOfResource = 0x0a
)

// Task management functions and responses. RFC 7143 sections 11.5.1, 11.6.1.
const (
	TaskAbort        = 1
	TaskAbortSet     = 2
	TaskClearACA     = 3
	TaskClearSet     = 4
	TaskLUNReset     = 5
	TaskWarmReset    = 6
	TaskColdReset    = 7
	TaskReassign     = 8
	TaskDone         = 0
	TaskNotFound     = 1
	TaskNoLUN        = 2
	TaskNotReassign  = 4 // task allegiance reassignment not supported
	TaskNotSupported = 5
	TaskRejected     = 255
)

// Events of an Asynchronous Message. RFC 7143 section 11.9.1.
const (
	AsyncLogout      = 1 // the target asks for a logout within Parameter3 seconds
	AsyncDropConn    = 2
	AsyncDropSession = 3
)

// Logout reasons and responses. RFC 7143 sections 11.14.1, 11.15.1.
const (
	LogoutSession    = 0
	LogoutConnection = 1
	LogoutRecovery   = 2
	LogoutDone       = 0
	LogoutNoCID      = 1
	LogoutNoRecovery = 2
)

// Task attributes of a SCSI Command. RFC 7143 section 11.3.1.
const attrMask = 0x07
