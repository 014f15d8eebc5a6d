package scsi

import "encoding/binary"

var be = binary.BigEndian

// Status codes. SAM-5 section 5.3.1.
const (
	StatusGood                = 0x00
	StatusCheckCondition      = 0x02
	StatusBusy                = 0x08
	StatusReservationConflict = 0x18
	StatusTaskSetFull         = 0x28
	StatusTaskAborted         = 0x40
)

// Operation codes. SPC-4 annex D.2, SBC-3 table 36.
const (
	opTestUnitReady   = 0x00
	opRequestSense    = 0x03
	opFormatUnit      = 0x04
	opReassignBlocks  = 0x07
	opRead6           = 0x08
	opWrite6          = 0x0a
	opInquiry         = 0x12
	opModeSelect6     = 0x15
	opReserve6        = 0x16
	opRelease6        = 0x17
	opModeSense6      = 0x1a
	opStartStop       = 0x1b
	opPreventAllow    = 0x1e
	opReadCapacity10  = 0x25
	opRead10          = 0x28
	opWrite10         = 0x2a
	opWriteVerify10   = 0x2e
	opVerify10        = 0x2f
	opPrefetch10      = 0x34
	opSyncCache10     = 0x35
	opWriteBuffer     = 0x3b
	opWriteLong10     = 0x3f
	opWriteSame10     = 0x41
	opUnmap           = 0x42
	opSanitize        = 0x48
	opXDWrite10       = 0x50
	opXPWrite10       = 0x51
	opXDWriteRead10   = 0x53
	opModeSelect10    = 0x55
	opReserve10       = 0x56
	opRelease10       = 0x57
	opModeSense10     = 0x5a
	opPersistentIn    = 0x5e
	opPersistentOut   = 0x5f
	opVariable        = 0x7f
	opXDWriteExtended = 0x80
	opRead16          = 0x88
	opCompareAndWrite = 0x89
	opWrite16         = 0x8a
	opOrWrite16       = 0x8b
	opWriteVerify16   = 0x8e
	opVerify16        = 0x8f
	opPrefetch16      = 0x90
	opSyncCache16     = 0x91
	opWriteSame16     = 0x93
	opWriteAtomic16   = 0x9c
	opServiceIn16     = 0x9e
	opServiceOut16    = 0x9f
	opReportLUNs      = 0xa0
	opMaintenanceIn   = 0xa3
	opRead12          = 0xa8
	opWrite12         = 0xaa
	opWriteVerify12   = 0xae
	opVerify12        = 0xaf
)

// Service actions: SPC-4 sections 6.15, 6.16, 6.35; SBC-3 sections 5.16, 5.9, 5.41.
const (
	saReadCapacity16   = 0x10 // SERVICE ACTION IN(16)
	saGetLBAStatus     = 0x12
	saWriteLong16      = 0x11 // SERVICE ACTION OUT(16)
	saReportOpcodes    = 0x0c // MAINTENANCE IN
	saXPWrite32        = 0x06 // variable length
	saXDWriteRead32    = 0x07
	saWrite32          = 0x0b
	saWriteVerify32    = 0x0c
	saWriteSame32      = 0x0d
	saOrWrite32        = 0x0e
	saWriteAtomic32    = 0x0f
	saReadKeys         = 0x00 // PERSISTENT RESERVE IN
	saReadReservation  = 0x01
	saReportCaps       = 0x02
	saReadFullStatus   = 0x03
	saRegister         = 0x00 // PERSISTENT RESERVE OUT
	saReserve          = 0x01
	saRelease          = 0x02
	saClear            = 0x03
	saPreempt          = 0x04
	saPreemptAbort     = 0x05
	saRegisterIgnore   = 0x06
	saRegisterMove     = 0x07
	prWriteExclusive   = 1 // persistent reservation types, SPC-4 table 54
	prExclusiveAccess  = 3
	prWriteExclusiveRO = 5 // registrants only
	prExclusiveAccRO   = 6
	prWriteExclusiveAR = 7 // all registrants
	prExclusiveAccAR   = 8
)

// Vital product data and mode pages. SPC-4 sections 7.5 and 7.8, SBC-3 sections 6.4 and 6.5.
const (
	vpdSupported    = 0x00
	vpdSerial       = 0x80
	vpdDeviceID     = 0x83
	vpdBlockLimits  = 0xb0
	vpdBlockChars   = 0xb1
	vpdProvisioning = 0xb2

	pageErrorRecovery = 0x01
	pageDisconnect    = 0x02
	pageCaching       = 0x08
	pageControl       = 0x0a
	pageInfoException = 0x1c
	pageAll           = 0x3f

	controlSWP = 0x08 // software write protect, byte 4 of the control page
)

// additional sense code and qualifier in one number: ASC<<8|ASCQ. SPC-4 annex D.6.
const (
	ascNone                  = 0x0000
	ascReadError             = 0x1100
	ascParamListLength       = 0x1a00
	ascMiscompare            = 0x1d00
	ascInvalidOpcode         = 0x2000
	ascLBARange              = 0x2100
	ascInvalidField          = 0x2400
	ascNoLUN                 = 0x2500
	ascInvalidParam          = 0x2600
	ascReleaseInvalid        = 0x2604
	ascWriteProtected        = 0x2700
	ascNoSpace               = 0x2707 // space allocation failed write protect
	ascPowerOn               = 0x2900
	ascBusDeviceReset        = 0x2903
	ascModeChanged           = 0x2a01
	ascReservePreempted      = 0x2a03
	ascReserveReleased       = 0x2a04
	ascRegistrationPreempted = 0x2a05
	ascWriteError            = 0x0c00
	ascInternalFailure       = 0x4400
	ascDataPhaseError        = 0x4b00
	ascCRCError              = 0x4705 // protocol service CRC error
	ascSavingParams          = 0x3900
)

// Sense keys. SPC-4 section 4.5.6.
const (
	keyNone           = 0x0
	keyMediumError    = 0x3
	keyHardwareError  = 0x4
	keyIllegalRequest = 0x5
	keyUnitAttention  = 0x6
	keyDataProtect    = 0x7
	keyAborted        = 0xb
	keyMiscompare     = 0xe
)

// Limits of one command, in bytes. They appear in the block limits page.
const (
	// maxTransfer bounds one READ or WRITE. The data stream through buffers of
	// the session, so this costs no memory; 65,535 blocks of 512 bytes fit.
	maxTransfer = 32 << 20
	// optimalTransfer is what a session negotiates as one segment.
	optimalTransfer = 1 << 20
	// maxGather bounds data-out that has to be held as a whole: COMPARE AND
	// WRITE, ORWRITE, and one block of WRITE SAME.
	maxGather = 1 << 20
	// maxParameters bounds parameter lists; two-byte lengths can say no more.
	maxParameters = 64 << 10
	// maxUnmapRanges bounds the descriptors of one UNMAP.
	maxUnmapRanges = 256
	// maxWriteSame bounds one WRITE SAME; zeroing costs no space in the overlay,
	// patterns do, so a gigabyte is a bound on time.
	maxWriteSame = 1 << 30
)
